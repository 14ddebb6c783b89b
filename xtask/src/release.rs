//! The releases of Xen that the project supports, as a person names them.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// A release of Xen that the project supports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Release {
    /// As in Debian bullseye
    #[value(name = "4.14")]
    Xen4_14,
    /// As in Debian bookworm
    #[value(name = "4.17")]
    Xen4_17,
    /// As in Debian trixie
    #[value(name = "4.20")]
    Xen4_20,
}

/// Some of them: named, with commas between them, or all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Releases(pub(crate) Vec<Release>);

impl FromStr for Releases {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        if words == "all" {
            return Ok(Self(Release::value_variants().to_vec()));
        }
        words
            .split(',')
            .map(|word| Release::from_str(word, false).map_err(|_| unknown(word)))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Returns what to say of a release that is none of ours.
fn unknown(word: &str) -> String {
    let known: Vec<_> = Release::value_variants().iter().map(Release::to_string).collect();
    format!("{word:?} is not one of {}, nor \"all\"", known.join(", "))
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Xen4_14 => "4.14",
            Self::Xen4_17 => "4.17",
            Self::Xen4_20 => "4.20",
        })
    }
}
