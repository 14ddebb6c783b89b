//! The shape of the code, read as a compiler would: no function takes a tuple, no alias stands for
//! one, no two files of a crate import each other, directly or around, and no two public types have
//! one name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syn::visit::{self, Visit};

use crate::cargo::rust_files;
use crate::paths;

/// Checks that no function takes a tuple, in tests neither, and that no alias stands for one.
///
/// # Errors
/// The places.
pub(super) fn tuples() -> Result<String> {
    let workspace = paths::workspace();
    let mut found = BTreeMap::<String, Vec<String>>::new();
    let files = rust_files()?;
    for file in &files {
        let name = file.strip_prefix(&workspace).unwrap_or(file);
        let mut places = Tuples::default();
        places.visit_file(&parse(file)?);
        let place = |function| format!("{}: {function}", name.display());
        found.entry(crate_of(name)).or_default().extend(places.0.into_iter().map(place));
    }
    judge(&found, "takes a tuple, or is one: arguments are arguments, and a pair has a name")?;
    Ok(format!("{} files", files.len()))
}

/// Checks that each crate's files can be read from the ground up.
///
/// # Errors
/// The files that import each other.
pub(super) fn circles() -> Result<String> {
    let workspace = paths::workspace();
    let mut crates = BTreeMap::<PathBuf, Vec<PathBuf>>::new();
    for file in rust_files()? {
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        let source = name.ancestors().find(|folder| folder.ends_with("src"));
        if let Some(source) = source.filter(|_| !name.ends_with("tests.rs")) {
            crates.entry(source.to_owned()).or_default().push(name.to_owned());
        }
    }
    let mut found = BTreeMap::new();
    for (source, files) in &crates {
        let mut imports = BTreeMap::new();
        for file in files.iter().filter(|file| !is_root(file)) {
            let of_file = imported(&workspace, source, file, files)?;
            imports.insert(file.clone(), of_file);
        }
        let reached = |from: &PathBuf| reach(from, &imports);
        let in_circle = |file: &&PathBuf| reached(file).contains(*file);
        let files: Vec<_> = imports.keys().filter(in_circle).collect();
        let name = crate_of(source);
        let say = |file: &PathBuf| {
            let others = reached(file).into_iter().filter(|other| reached(other).contains(file));
            let others: Vec<_> = others.map(|other| other.display().to_string()).collect();
            format!("{} (with {})", file.display(), others.join(", "))
        };
        found.insert(name, files.into_iter().map(say).collect());
    }
    judge(&found, "is imported by what it imports: what both need goes below")?;
    Ok(format!("{} crates", crates.len()))
}

/// Checks that a public type of the libraries has a name of its own.
///
/// # Errors
/// The names, with the files that declare them.
pub(super) fn names() -> Result<String> {
    let workspace = paths::workspace();
    let mut declared = BTreeMap::<String, Vec<String>>::new();
    for file in rust_files()? {
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        let is_program = name.starts_with("examples") || name.starts_with("xtask");
        if is_program || !name.ancestors().any(|folder| folder.ends_with("src")) {
            continue;
        }
        for of_type in parse(&file)?.items.iter().filter_map(public_type) {
            declared.entry(of_type).or_default().push(name.display().to_string());
        }
    }
    let count = declared.len();
    declared.retain(|_, files| files.len() > 1);
    let say = |(name, files): (String, Vec<String>)| format!("{}: {name}", files.join(", "));
    let found = BTreeMap::from([(String::new(), declared.into_iter().map(say).collect())]);
    judge(&found, "is one word for two things: a name of its own for each")?;
    Ok(format!("{count} public types"))
}

/// The name of a type or trait that other crates may see.
fn public_type(item: &syn::Item) -> Option<String> {
    let (of_item, name) = match item {
        syn::Item::Struct(item) => (&item.vis, &item.ident),
        syn::Item::Enum(item) => (&item.vis, &item.ident),
        syn::Item::Trait(item) => (&item.vis, &item.ident),
        syn::Item::Type(item) => (&item.vis, &item.ident),
        syn::Item::Union(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    matches!(of_item, syn::Visibility::Public(_)).then(|| name.to_string())
}

/// Refuses what was found, crate by crate.
fn judge(found: &BTreeMap<String, Vec<String>>, rule: &str) -> Result<()> {
    let places: Vec<_> = found.values().flatten().map(|place| format!("{place} {rule}")).collect();
    if !places.is_empty() {
        bail!("{}", places.join("\n"));
    }
    Ok(())
}

/// The folder of the crate that a file belongs to.
fn crate_of(file: &Path) -> String {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    let inner = ["src", "tests", "examples", "benches", "fuzz_targets"];
    // The crate of the tests is a folder of that name, and so is that of the examples.
    let end = (1..parts.len()).find(|at| inner.contains(&&*parts[*at])).unwrap_or(1);
    parts[..end].join("/")
}

fn parse(file: &Path) -> Result<syn::File> {
    let text = fs::read_to_string(file)?;
    syn::parse_file(&text).with_context(|| format!("{} is not Rust", file.display()))
}

/// The functions of a file that take a tuple, once for each, or a function that takes one; and the
/// aliases of tuples.
#[derive(Default)]
struct Tuples(Vec<String>);

impl<'ast> Visit<'ast> for Tuples {
    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        let typed = signature.inputs.iter().filter_map(|input| match input {
            syn::FnArg::Typed(typed) => Some(&*typed.ty),
            syn::FnArg::Receiver(_) => None,
        });
        let tuples = typed.filter(|kind| is_tuple(kind)).count();
        self.0.extend((0..tuples).map(|_| signature.ident.to_string()));
        visit::visit_signature(self, signature);
    }

    fn visit_item_type(&mut self, alias: &'ast syn::ItemType) {
        self.0.extend(is_tuple(&alias.ty).then(|| alias.ident.to_string()));
        visit::visit_item_type(self, alias);
    }

    fn visit_parenthesized_generic_arguments(
        &mut self,
        arguments: &'ast syn::ParenthesizedGenericArguments,
    ) {
        let tuples = arguments.inputs.iter().filter(|input| is_tuple(&input.ty));
        self.0.extend(tuples.map(|_| "Fn".to_owned()));
        visit::visit_parenthesized_generic_arguments(self, arguments);
    }
}

fn is_tuple(kind: &syn::Type) -> bool {
    match kind {
        syn::Type::Tuple(tuple) => !tuple.elems.is_empty(),
        syn::Type::Reference(reference) => is_tuple(&reference.elem),
        syn::Type::Paren(inner) => is_tuple(&inner.elem),
        _ => false,
    }
}

fn is_root(file: &Path) -> bool {
    file.ends_with("src/lib.rs") || file.ends_with("src/main.rs")
}

/// The module that a file is, from the crate's root.
fn module(source: &Path, file: &Path) -> Vec<String> {
    let inner = file.strip_prefix(source).unwrap_or(file).with_extension("");
    let mut parts: Vec<_> = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        parts.pop();
    }
    parts
}

/// The files of the crate that a file imports. A part of a module may use the module's own items.
fn imported(
    workspace: &Path,
    source: &Path,
    file: &Path,
    files: &[PathBuf],
) -> Result<BTreeSet<PathBuf>> {
    let own = module(source, file);
    let mut paths = Paths { own: own.clone(), found: Vec::new() };
    paths.visit_file(&parse(&workspace.join(file))?);
    let by_module: BTreeMap<_, _> = files
        .iter()
        .filter(|file| !is_root(file))
        .map(|file| (module(source, file), file))
        .collect();
    let target = |path: &Vec<String>| {
        let lengths = (1..=path.len()).rev();
        lengths.map(|length| &path[..length]).find_map(|head| by_module.get(head))
    };
    let others = paths.found.iter().filter_map(target).filter(|other| {
        let parent = module(source, other);
        ***other != *file && !own.starts_with(&parent)
    });
    Ok(others.map(|other| (*other).clone()).collect())
}

/// The paths within the crate that a file names, outside its tests.
struct Paths {
    own: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    /// Notes a path that begins with `crate`, `super` or `self`.
    fn note(&mut self, names: &[String]) {
        let mut path = match names.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.own.clone(),
            _ => return,
        };
        for name in names {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => drop(path.pop()),
                name => path.push(name.to_owned()),
            }
        }
        self.found.push(path);
    }

    fn note_tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.note_tree(tree, before));
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.note(before);
                before.pop();
            }
            syn::UseTree::Glob(_) => self.note(before),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&item.tree, &mut Vec::new());
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| {
            let text = attribute.meta.require_list().map(|list| list.tokens.to_string());
            attribute.path().is_ident("cfg") && text.is_ok_and(|text| text.contains("test"))
        };
        if item.attrs.iter().any(is_test) || item.content.is_none() {
            return;
        }
        self.own.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.own.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.note(&names);
        visit::visit_path(self, path);
    }
}

/// The files that one imports, directly or around.
fn reach(from: &PathBuf, imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from];
    while let Some(file) = left.pop() {
        for other in imports.get(file).into_iter().flatten() {
            if reached.insert(other.clone()) {
                left.push(other);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuples_of(code: &str) -> Vec<String> {
        let mut tuples = Tuples::default();
        tuples.visit_file(&syn::parse_file(code).unwrap());
        tuples.0
    }

    #[test]
    fn a_tuple_among_the_arguments_is_found_behind_a_reference_and_in_a_method() {
        let code = "fn a((x, y): (u8, u8)) {} impl B { fn b(&self, pair: &(u8, u8)) {} }";
        assert_eq!(tuples_of(code), ["a", "b"]);
    }

    #[test]
    fn only_what_other_crates_see_needs_a_name_of_its_own() {
        let code = "pub struct A; pub(crate) enum B {} struct C; pub trait D {} pub type E = u8;";
        let items = syn::parse_file(code).unwrap().items;
        let names: Vec<_> = items.iter().filter_map(public_type).collect();
        assert_eq!(names, ["A", "D", "E"]);
    }

    #[test]
    fn an_alias_of_a_tuple_is_found_and_so_is_a_closure_that_takes_one() {
        let code = "type A = (u8, u8); type B<'a> = &'a (u8,); type C = Option<(u8, u8)>; \
                    fn d(f: &mut impl FnMut((u8, u8), u8), g: &dyn Fn(u8)) {}";
        assert_eq!(tuples_of(code), ["A", "B", "Fn"]);
    }

    #[test]
    fn nothing_as_an_argument_and_a_closure_over_pairs_are_no_tuples() {
        assert_eq!(tuples_of("fn a(_: (), f: impl Fn(u8) -> (u8, u8)) {}"), [""; 0]);
        assert_eq!(tuples_of("fn a() { [(1, 2)].map(|(x, y)| x + y); }"), [""; 0]);
    }

    fn paths_of(own: &str, code: &str) -> Vec<String> {
        let own = own.split("::").map(str::to_owned).collect();
        let mut paths = Paths { own, found: Vec::new() };
        paths.visit_file(&syn::parse_file(code).unwrap());
        paths.found.into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn what_a_file_imports_is_found_by_use_and_by_path_but_not_in_its_tests() {
        let code = "use crate::a::{B, c::D}; fn e() { super::f::g(); } \
                    #[cfg(test)] mod tests { use crate::h::I; }";
        assert_eq!(paths_of("one::two", code), ["a::B", "a::c::D", "one::f::g"]);
    }

    #[test]
    fn files_around_a_circle_reach_themselves() {
        let [a, b, c] = ["a.rs", "b.rs", "c.rs"].map(PathBuf::from);
        let one = |file: &PathBuf| BTreeSet::from([file.clone()]);
        let imports = BTreeMap::from([(a.clone(), one(&b)), (b.clone(), one(&a)), (c, one(&a))]);
        assert!(reach(&a, &imports).contains(&a));
        assert!(!reach(&PathBuf::from("c.rs"), &imports).contains(Path::new("c.rs")));
    }
}
