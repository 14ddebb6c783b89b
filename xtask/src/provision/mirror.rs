//! Finds a mirror of Debian in the machine's own apt configuration, so that no mirror's address is
//! ever written down in this project. Reads both formats: one line a source, and deb822 stanzas.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Names that only a mirror of Debian uses for its suites.
const SUITES: [&str; 9] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// Where to get Debian's packages of any release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mirror {
    main: Source,
    security: Option<Source>,
}

/// One source of packages, without its suites.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Source {
    uri: String,
    /// A file of keys; without it apt's trusted keys count.
    keys: Option<String>,
}

/// A source as configured.
#[derive(Debug, Default)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    keys: Option<String>,
}

impl Mirror {
    /// Reads the machine's configuration, after `PVMMU_DEBIAN_MIRROR`.
    ///
    /// # Errors
    ///
    /// There is no Debian mirror in it.
    pub(crate) fn of_this_machine() -> Result<Self> {
        if let Ok(uri) = env::var("PVMMU_DEBIAN_MIRROR") {
            return Ok(Self { main: Source { uri, keys: None }, security: None });
        }
        match Self::choose(&configured_entries(Path::new("/etc/apt"))) {
            Some(mirror) => Ok(mirror),
            None => bail!("apt's configuration on this machine names no mirror of Debian"),
        }
    }

    /// Returns the text of a `sources.list` for one release of Debian.
    pub(crate) fn sources_list(&self, suite: &str) -> String {
        let security = self.security.as_ref().map(|source| (source, format!("{suite}-security")));
        [(&self.main, suite.to_owned())]
            .into_iter()
            .chain(security)
            .map(|(source, suite)| {
                let keys = source.keys.as_ref().map(|keys| format!(" signed-by={keys}"));
                let keys = keys.unwrap_or_default();
                format!("deb [arch=amd64{keys}] {} {suite} main\n", source.uri)
            })
            .collect()
    }

    fn choose(entries: &[Entry]) -> Option<Self> {
        let find = |wanted: &dyn Fn(&str) -> bool| {
            let entry = entries.iter().find(|entry| {
                let main = entry.components.iter().any(|component| component == "main");
                main && entry.suites.iter().any(|suite| wanted(suite))
            })?;
            Some(Source { uri: entry.uris.first()?.clone(), keys: entry.keys.clone() })
        };
        let security = find(&|suite| {
            suite.strip_suffix("-security").is_some_and(|base| SUITES.contains(&base))
        });
        Some(Self { main: find(&|suite| SUITES.contains(&suite))?, security })
    }
}

fn configured_entries(folder: &Path) -> Vec<Entry> {
    let mut files = vec![folder.join("sources.list")];
    let parts = fs::read_dir(folder.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = parts.map(|part| part.path()).collect();
    parts.sort();
    files.append(&mut parts);
    files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => stanzas(&text),
                Some("list") => text.lines().filter_map(one_line).collect(),
                _ => Vec::new(),
            }
        })
        .collect()
}

/// Returns `deb [option=value ...] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Entry> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let mut keys = None;
    if let Some(options) = rest.trim_start().strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        keys = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        keys: keys.map(str::to_owned),
    })
}

/// Stanzas of `Field: value` lines with an empty line between them.
fn stanzas(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let words = |name: &str| {
            field(name).into_iter().flat_map(str::split_whitespace).map(str::to_owned).collect()
        };
        let types: Vec<String> = words("Types");
        if types.iter().any(|kind| kind == "deb") && field("Enabled") != Some("no") {
            entries.push(Entry {
                uris: words("URIs"),
                suites: words("Suites"),
                components: words("Components"),
                // A key may also stand in the stanza itself; then apt's trusted keys must do.
                keys: field("Signed-By").filter(|keys| keys.starts_with('/')).map(str::to_owned),
            });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror_of(files: &[(&str, &str)]) -> Option<Mirror> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Mirror::choose(&configured_entries(folder.path()))
    }

    #[test]
    fn one_line_sources_are_read_with_options_and_comments() {
        let text = "# deb http://wrong bookworm main\n\
                    deb-src http://wrong bookworm main\n\
                    deb [arch=amd64 signed-by=/keys.gpg] http://mirror/debian bookworm main # x\n\
                    deb http://mirror/security bookworm-security main\n";
        let mirror = mirror_of(&[("sources.list", text)]).unwrap();
        assert_eq!(
            mirror.sources_list("trixie"),
            "deb [arch=amd64 signed-by=/keys.gpg] http://mirror/debian trixie main\n\
             deb [arch=amd64] http://mirror/security trixie-security main\n"
        );
    }

    #[test]
    fn deb822_sources_are_read_and_disabled_ones_are_not() {
        let text = "Types: deb\nEnabled: no\nURIs: http://wrong\nSuites: stable\n\
                    Components: main\n\n# note: a comment\nTypes: deb deb-src\n\
                    URIs: http://mirror/debian\nSuites: trixie trixie-updates\n\
                    Components: main contrib\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n";
        let mirror = mirror_of(&[("sources.list.d/debian.sources", text)]).unwrap();
        assert_eq!(
            mirror.sources_list("bullseye"),
            "deb [arch=amd64] http://mirror/debian bullseye main\n"
        );
    }

    #[test]
    fn mirrors_of_other_systems_do_not_count() {
        let other = "deb http://elsewhere/ubuntu noble main\ndeb http://vendor/tool stable extra\n";
        assert_eq!(mirror_of(&[("sources.list", other)]), None);
        assert_eq!(mirror_of(&[]), None);
    }
}
