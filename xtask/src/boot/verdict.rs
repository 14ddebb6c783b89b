//! The one line by which a guest says that it passed or failed. Tools read it, so its form is
//! fixed: `PVMMU-VERDICT pass TEXT` or `PVMMU-VERDICT fail TEXT`.

use std::fmt;

const MARK: &str = "PVMMU-VERDICT ";

/// What a guest says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It did what it should, in these words.
    Pass(String),
    /// It did not, in these words.
    Fail(String),
}

impl Verdict {
    /// Reads a line of the guest's console.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix(MARK)?;
        let (word, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "pass" => Some(Self::Pass(text.to_owned())),
            "fail" => Some(Self::Fail(text.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match self {
            Self::Pass(text) => ("pass", text),
            Self::Fail(text) => ("fail", text),
        };
        write!(f, "{}", format!("{MARK}{word} {text}").trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_and_written_in_the_same_form() {
        for line in ["PVMMU-VERDICT pass 12 steps", "PVMMU-VERDICT fail", "PVMMU-VERDICT fail a b"]
        {
            assert_eq!(Verdict::parse(line).unwrap().to_string(), line);
        }
    }

    #[test]
    fn other_lines_are_no_verdicts() {
        for line in ["", "pass", "PVMMU-VERDICT", "PVMMU-VERDICT passed", "x PVMMU-VERDICT pass"] {
            assert_eq!(Verdict::parse(line), None, "{line}");
        }
    }
}
