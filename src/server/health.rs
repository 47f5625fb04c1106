//! What `afterimage health` asks: does an instance serve?

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Less than the 3 s that health checks of containers commonly have.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Why an instance should get no requests.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nothing is there.
    #[error(
        "nobody listens on {admin}; start afterimage, or name its admin.listen with --admin or --config"
    )]
    Absent {
        /// Where it was looked for.
        admin: SocketAddr,
    },
    /// It says so itself.
    #[error(
        "{admin} is not ready: it starts or stops; ask again, and look at its log if that takes long"
    )]
    NotServing {
        /// Where it was asked.
        admin: SocketAddr,
    },
    /// It takes the question and no more.
    #[error("{admin} does not answer within {ANSWERS_WITHIN:?}; look at its log, and restart it")]
    Silent {
        /// Where it was asked.
        admin: SocketAddr,
    },
    /// Something else is there.
    #[error(
        "{admin} answers {status}, as afterimage never does; name its admin.listen with --admin or --config"
    )]
    Stranger {
        /// Where it was asked.
        admin: SocketAddr,
        /// What it said.
        status: StatusCode,
    },
    /// The connection cannot be made, or breaks off.
    #[error(
        "{admin} cannot be asked: {error}; look at its log, or name its admin.listen with --admin or --config"
    )]
    Failed {
        /// Where it was looked for.
        admin: SocketAddr,
        /// What the system or the peer did.
        error: String,
    },
}

/// Asks the instance with this `admin.listen` whether it is ready for requests.
///
/// # Errors
/// Why it is not, and the way out.
pub async fn health(admin: SocketAddr) -> Result<(), NotReady> {
    let answered = tokio::time::timeout(ANSWERS_WITHIN, ask(admin)).await;
    match answered.map_err(|_| NotReady::Silent { admin })?? {
        StatusCode::OK => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE => Err(NotReady::NotServing { admin }),
        status => Err(NotReady::Stranger { admin, status }),
    }
}

async fn ask(admin: SocketAddr) -> Result<StatusCode, NotReady> {
    let failed = |error: hyper::Error| NotReady::Failed {
        admin,
        error: error.to_string(),
    };
    let stream = TcpStream::connect(admin)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => NotReady::Absent { admin },
            _ => NotReady::Failed {
                admin,
                error: error.to_string(),
            },
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let request = Request::get("/readyz")
        .header(HOST, admin.to_string())
        .body(Empty::<Bytes>::new())
        .expect("a constant path and an address are valid");
    let asked = sender.send_request(request);
    tokio::pin!(asked);
    // The connection ends with an answer, or with why there is none.
    tokio::select! {
        answer = &mut asked => answer.map(|answer| answer.status()).map_err(failed),
        _ = connection => asked.await.map(|answer| answer.status()).map_err(failed),
    }
}
