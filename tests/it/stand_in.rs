//! imgproxy's stand-in, held against the recorded answers of the real one.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::support::imgproxy::Program;
use crate::support::tools;

/// The stand-in always, and the real imgproxy as well where the other tests run with one. The replay starts and ends the
/// servers itself; its last line says how many answers agreed.
#[test]
fn imgproxy_and_its_stand_in_answer_as_recorded() -> Result<()> {
    let python = tools::path("imgproxy")?;
    let directory = tools::project().join("tests/imgproxy");
    let mut replays = vec![vec![
        "--server".into(),
        python.clone(),
        directory.join("server.py"),
    ]];
    match Program::find()? {
        Program::Named(binary) | Program::OnPath(binary) => {
            replays.push(vec!["--binary".into(), binary]);
        }
        Program::StandIn { .. } => {}
    }
    for server in replays {
        let output = Command::new(&python)
            .current_dir(&directory)
            .arg("replay.py")
            .args(&server)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{server:?}: {said}\n{errors}");
        let result = said.lines().rfind(|line| line.contains(" agreed"));
        let result = result.with_context(|| format!("no result in: {said}"))?;
        let agreed: u32 = result.split(' ').next().context("a number")?.parse()?;
        assert!(agreed >= 150, "{server:?}: {result}");
    }
    Ok(())
}
