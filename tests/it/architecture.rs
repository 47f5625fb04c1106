//! The arrows of the house: `docs/architecture.md` says which folder may use which, and the code keeps to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The header of the table in the architecture page.
const HEADER: &str = "| folder | may use |";

/// Above every folder: they tie everything together.
const TOP: [&str; 3] = ["lib", "main", "cli"];

type Module = Vec<String>;

/// One file of the code, and what it names of the crate.
struct Source {
    path: PathBuf,
    module: Module,
    /// Paths from the crate's root on.
    names: BTreeSet<Module>,
}

impl Source {
    fn folder(&self) -> &str {
        &self.module[0]
    }
}

/// All files, without tests and what is there for tests alone.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let module = module_of(path.strip_prefix(&root).unwrap());
            let is_for_tests = module.iter().any(|part| {
                ["tests", "testing", "fuzzing", "properties", "reference"].contains(&&**part)
            });
            if is_for_tests {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !TOP.contains(&&*module[0])
            {
                let file = syn::parse_file(&fs::read_to_string(&path).unwrap())
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let mut names = Names {
                    module: module.clone(),
                    found: BTreeSet::new(),
                };
                names.visit_file(&file);
                found.push(Source {
                    path,
                    module,
                    names: names.found,
                });
            }
        }
    }
    assert!(found.len() > 50, "{} files", found.len());
    found
}

fn module_of(path: &Path) -> Module {
    let mut module: Module = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// Collects the paths that begin with `crate`, `super` or `self`.
struct Names {
    module: Module,
    found: BTreeSet<Module>,
}

impl Names {
    fn add(&mut self, path: &[String]) {
        let mut absolute = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len() - 1].to_vec(),
            _ => return,
        };
        for part in &path[1..] {
            if part == "super" {
                absolute.pop();
            } else {
                absolute.push(part.clone());
            }
        }
        self.found.insert(absolute);
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => self.add(before),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(name) if name.ident == "self" => self.add(before),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(before, tree);
                }
            }
        }
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        attribute.path().is_ident("cfg") && list.tokens.to_string().contains("test")
    })
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_for_tests(&item.attrs) {
            return;
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.add_tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Module = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.add(&parts);
        visit::visit_path(self, path);
    }
}

/// The table of the architecture page.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page
        .lines()
        .skip_while(|line| *line != HEADER)
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let table: BTreeMap<_, _> = rows
        .map(|row| {
            let mut quoted = row.split('`').skip(1).step_by(2).map(str::to_owned);
            let folder = quoted.next().unwrap();
            (folder, quoted.collect())
        })
        .collect();
    assert!(
        !table.is_empty(),
        "docs/architecture.md has no table {HEADER}"
    );
    table
}

#[test]
fn folders_use_what_the_architecture_page_says() {
    let allowed = allowed();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in sources() {
        let folder = source.folder();
        let Some(may_use) = allowed.get(folder) else {
            wrong.push(format!("`{folder}` is not in the table"));
            continue;
        };
        for name in &source.names {
            let Some(target) = name.first().filter(|target| *target != folder) else {
                continue;
            };
            used.insert((folder.to_owned(), target.clone()));
            if !may_use.contains(target) {
                let path = source.path.display();
                wrong.push(format!("{path}: `{folder}` may not use `{target}`"));
            }
        }
    }
    for (folder, targets) in &allowed {
        for target in targets {
            if !used.contains(&(folder.clone(), target.clone())) {
                wrong.push(format!(
                    "the table lets `{folder}` use `{target}`, which it does not"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_arrows_of_the_architecture_page_go_one_way() {
    let circle = circle(&allowed());
    assert_eq!(circle, None, "docs/architecture.md");
}

/// A folder's face, its `mod.rs`, holds its files: arrows between it and them are not looked at.
#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources();
    let modules: BTreeSet<_> = sources.iter().map(|source| &source.module).collect();
    let mut arrows = BTreeMap::<String, BTreeSet<String>>::new();
    for source in &sources {
        let from = &source.module;
        let targets = arrows.entry(from.join("::")).or_default();
        for name in &source.names {
            let target = (1..=name.len())
                .rev()
                .map(|length| name[..length].to_vec())
                .find(|module| modules.contains(module));
            if let Some(target) = target
                && !from.starts_with(&target)
                && !target.starts_with(from)
            {
                targets.insert(target.join("::"));
            }
        }
    }
    assert_eq!(circle(&arrows), None);
}

/// The first circle that is found.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut over = BTreeSet::new();
    arrows
        .keys()
        .find_map(|start| follow(start, arrows, &mut Vec::new(), &mut over))
}

fn follow(
    node: &str,
    arrows: &BTreeMap<String, BTreeSet<String>>,
    way: &mut Vec<String>,
    over: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(index) = way.iter().position(|before| before == node) {
        return Some(way[index..].to_vec());
    }
    if over.contains(node) {
        return None;
    }
    way.push(node.to_owned());
    for target in arrows.get(node).into_iter().flatten() {
        if let Some(circle) = follow(target, arrows, way, over) {
            return Some(circle);
        }
    }
    way.pop();
    over.insert(node.to_owned());
    None
}

#[test]
fn a_circle_is_found_and_a_diamond_is_none() {
    let arrows = |pairs: &[(&str, &str)]| {
        let mut arrows = BTreeMap::<String, BTreeSet<String>>::new();
        for (from, to) in pairs {
            let targets = arrows.entry((*from).to_owned()).or_default();
            targets.insert((*to).to_owned());
        }
        arrows
    };
    let diamond = arrows(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]);
    assert_eq!(circle(&diamond), None);
    let round = arrows(&[("a", "b"), ("b", "c"), ("c", "b")]);
    let found = ["b", "c"].map(str::to_owned).to_vec();
    assert_eq!(circle(&round), Some(found));
}
