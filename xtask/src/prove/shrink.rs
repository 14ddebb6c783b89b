//! Cutting a sequence down: leave out parts, ever smaller ones, as long as what remains still
//! differs.

use anyhow::Result;

use super::record::Group;

/// A try is a boot of real Xen: so many are worth a short sequence.
const TRIES_MAX: usize = 150;

/// Returns the shortest sub-sequence found that `differs`; `None` if not even the whole one does.
///
/// # Errors
///
/// Those of `differs`, which is told the candidate and how many were tried before it.
pub(super) fn shrink(
    groups: &[Group],
    mut differs: impl FnMut(&[Group], usize) -> Result<bool>,
) -> Result<Option<Vec<Group>>> {
    let mut tries = 1;
    if !differs(groups, 0)? {
        return Ok(None);
    }
    let mut shortest = groups.to_vec();
    let mut part = shortest.len().div_ceil(2);
    while tries < TRIES_MAX {
        let mut start = 0;
        let mut cut = false;
        while start < shortest.len() && tries < TRIES_MAX {
            let end = (start + part).min(shortest.len());
            let candidate = [&shortest[..start], &shortest[end..]].concat();
            tries += 1;
            if !candidate.is_empty() && differs(&candidate, tries)? {
                shortest = candidate;
                cut = true;
            } else {
                start = end;
            }
        }
        if part == 1 && !cut {
            break;
        }
        part = part.div_ceil(2).max(1);
    }
    Ok(Some(shortest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(number: usize) -> Group {
        Group { steps: vec![number.to_string()], observed: String::new() }
    }

    fn needs(wanted: &'static [usize]) -> impl FnMut(&[Group], usize) -> Result<bool> {
        move |groups, _| Ok(wanted.iter().all(|number| groups.contains(&group(*number))))
    }

    #[test]
    fn only_what_is_needed_remains() {
        let all: Vec<Group> = (0..64).map(group).collect();
        let shortest = shrink(&all, needs(&[3, 40, 63])).unwrap().unwrap();
        assert_eq!(shortest, [group(3), group(40), group(63)]);
    }

    #[test]
    fn a_sequence_that_does_not_differ_is_told() {
        let all: Vec<Group> = (0..8).map(group).collect();
        assert_eq!(shrink(&all, needs(&[99])).unwrap(), None);
    }

    #[test]
    fn tries_are_bounded() {
        let all: Vec<Group> = (0..4000).map(group).collect();
        let mut tries = 0;
        let odd = |groups: &[Group], _| {
            tries += 1;
            Ok(groups.len().is_multiple_of(2))
        };
        shrink(&all, odd).unwrap().unwrap();
        assert!(tries <= TRIES_MAX, "{tries}");
    }
}
