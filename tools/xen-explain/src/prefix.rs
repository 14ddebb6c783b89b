//! What stands before a message: times, who caused it, the file of Xen. Consoles, syslogs and
//! journals all put something of their own in front, so each part is looked for by its own shape.

use serde::Serialize;

/// When a line was printed, as far as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Microseconds since the start of the year.
    pub(crate) of_year: Option<u64>,
    /// Microseconds since Xen or the kernel started.
    pub(crate) uptime: Option<u64>,
}

/// On whose behalf Xen acted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Speaker {
    /// The domain.
    pub domain: Option<u64>,
    /// Its vCPU; Xen up to 4.4 does not say.
    pub vcpu: Option<u64>,
}

/// All of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prefix {
    pub(crate) stamp: Stamp,
    pub(crate) speaker: Speaker,
    /// Whether `(XEN)` stands there.
    pub(crate) is_xens: bool,
    /// Which releases have such a prefix, as a number of bytes is no release: see `Style`.
    pub(crate) style: Style,
    /// Bytes up to what is behind `(XEN)` and the speaker.
    pub(crate) length: usize,
}

/// How file and speaker are written: it changed with releases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// None that says anything.
    #[default]
    Unknown,
    /// `DOM0: (file=mm.c, line=12)`: up to 3.0.3.
    Ancient,
    /// `mm.c:12:d0`: up to 4.4.
    NoVcpu,
    /// `mm.c:12:d0v0`: 4.5 to 4.16.
    Vcpu,
    /// `arch/x86/mm.c:12:d0v0`: from 4.17 on.
    WholePath,
}

/// Bytes of a prefix that are looked at: nobody puts more in front of a line.
const LOOKED_AT: usize = 256;

/// Reads what stands before a message.
pub(crate) fn read(before: &[u8]) -> Prefix {
    let skipped = before.len().saturating_sub(LOOKED_AT);
    let before = &before[skipped..];
    let mut prefix = Prefix { length: skipped, ..Prefix::default() };
    let mut end = skipped;
    for token in before.split_inclusive(|byte| *byte == b' ') {
        end += token.len();
        let Ok(token) = std::str::from_utf8(token.trim_ascii()) else { continue };
        if token.ends_with("(XEN)") {
            (prefix.is_xens, prefix.length) = (true, end);
        } else if let Some(speaker) = speaker(token.rsplit(':').next().unwrap_or(token)) {
            prefix.speaker = speaker;
            prefix.style = style(token, speaker);
            prefix.length = end;
        } else if let Some(domain) =
            token.strip_prefix("DOM").and_then(|rest| rest.strip_suffix(':'))
        {
            prefix.speaker.domain = domain.parse().ok();
            prefix.style = Style::Ancient;
        }
    }
    prefix.stamp = stamp(before);
    prefix
}

/// Returns `d7` or `d7v3`.
fn speaker(token: &str) -> Option<Speaker> {
    let rest = token.strip_prefix('d')?;
    let (domain, vcpu) = match rest.split_once('v') {
        Some((domain, vcpu)) => (domain, Some(vcpu.parse().ok()?)),
        None => (rest, None),
    };
    Some(Speaker { domain: Some(domain.parse().ok()?), vcpu })
}

fn style(token: &str, speaker: Speaker) -> Style {
    match (token.contains(".c:") || token.contains(".h:"), speaker.vcpu) {
        (true, _) if token.contains('/') => Style::WholePath,
        (true, None) => Style::NoVcpu,
        (true, Some(_)) => Style::Vcpu,
        (false, _) => Style::Unknown,
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS_BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// All times in a prefix. The last of each kind counts: it is nearest to the message.
fn stamp(before: &[u8]) -> Stamp {
    let text = String::from_utf8_lossy(before);
    let mut stamp = Stamp::default();
    let (mut first, mut second) = ("", "");
    let words = text.split([' ', '[', ']', 'T']).filter(|word| !word.is_empty());
    // Two empty words after the last let every word be the first of three.
    for third in words.chain([""; 2]) {
        if let Some(month) = MONTHS.iter().position(|name| *name == first) {
            stamp.of_year = of_year(month, second, third).or(stamp.of_year);
        } else if first.len() == 10
            && let (Some(month), Some(day)) = (first.get(5..7), first.get(8..10))
            && let Ok(month @ 1..=12) = month.parse::<usize>()
        {
            stamp.of_year = of_year(month - 1, day, second).or(stamp.of_year);
        }
        (first, second) = (second, third);
    }
    let bracketed = text.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    for (inside, _) in bracketed {
        stamp.uptime = seconds(inside.trim()).or(stamp.uptime);
    }
    stamp
}

/// Microseconds since the start of a year, of a day and a time of day.
fn of_year(month: usize, day: &str, time: &str) -> Option<u64> {
    if !time.contains(':') {
        return None;
    }
    let day: u64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let mut parts = time.splitn(3, ':');
    let hours: u64 = parts.next()?.parse().ok().filter(|hours| *hours < 24)?;
    let minutes: u64 = parts.next()?.parse().ok().filter(|minutes| *minutes < 60)?;
    // A zone or an offset may follow.
    let rest = parts.next()?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let rest = &rest[..end];
    let micros = if rest.contains('.') {
        seconds(rest)?
    } else {
        rest.parse::<u64>().ok().filter(|seconds| *seconds <= 60)? * 1_000_000
    };
    let days = DAYS_BEFORE.get(month)? + day - 1;
    Some((days * 86_400 + hours * 3600 + minutes * 60) * 1_000_000 + micros)
}

/// Returns `3105.715355` in microseconds.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.')?;
    let whole: u64 = whole.parse().ok().filter(|whole| *whole < 1 << 40)?;
    let digits = fraction.len();
    if !(1..=9).contains(&digits) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(whole * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_prefix_says_who_and_when() {
        let of_day = |day: u64, h: u64, m: u64, s: u64| {
            Some(((DAYS_BEFORE[3] + day - 1) * 86_400 + h * 3600 + m * 60 + s) * 1_000_000)
        };
        let two_fifty = of_day(6, 2, 50, 4);
        let zero = Speaker { domain: Some(0), vcpu: None };
        let one = Speaker { domain: Some(0), vcpu: Some(1) };
        let up = Some(3_105_715_355);
        for (text, of_year, uptime, speaker, style) in [
            ("(XEN) mm.c:2466:d0 ", None, None, zero, Style::NoVcpu),
            ("mm.c:2359:d0v1 ", None, None, one, Style::Vcpu),
            ("(XEN) arch/x86/mm.c:1:d0v1 ", None, None, one, Style::WholePath),
            ("(XEN) DOM0: (file=mm.c, line=12) ", None, None, zero, Style::Ancient),
            ("(XEN) d0v1 ", None, None, one, Style::Unknown),
            (
                "[2016-04-06 02:50:04] (XEN) [ 3105.715355] mm.c:2359:d0v1 ",
                two_fifty,
                up,
                one,
                Style::Vcpu,
            ),
            (
                "Apr 6 02:50:04 localhost kernel: [ 3105.715355] ",
                two_fifty,
                up,
                Speaker::default(),
                Style::Unknown,
            ),
            ("Apr  6 02:50:04 h xl[12]: (XEN) mm.c:1:d0 ", two_fifty, None, zero, Style::NoVcpu),
            ("2016-04-06T02:50:04+0200 h k: ", two_fifty, None, Speaker::default(), Style::Unknown),
            ("(XEN) [2016-04-06 02:50:04.000] d0v1 ", two_fifty, None, one, Style::Unknown),
        ] {
            let prefix = read(text.as_bytes());
            assert_eq!(prefix.stamp, Stamp { of_year, uptime }, "{text}");
            assert_eq!((prefix.speaker, prefix.style), (speaker, style), "{text}");
            assert_eq!(prefix.is_xens, text.contains("(XEN)"));
        }
    }

    #[test]
    fn nonsense_is_no_time_and_nobody() {
        for text in [
            "",
            "[",
            "[]",
            "[.]",
            "[99999999999999999999.0]",
            "Apr 99 1:1:1 ",
            "2016-13-01 1:2:3 ",
            "dv ",
            "d99999999999999999999 ",
            "\u{fffd}[ 1.x] ",
            "Apr 6 99:00:00 ",
        ] {
            let prefix = read(text.as_bytes());
            assert_eq!((prefix.stamp, prefix.speaker), Default::default(), "{text}");
        }
    }
}
