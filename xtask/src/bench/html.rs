//! The report as one page for a browser, which needs nothing else: targets, pictures, all rows.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::style::RGBColor;

use super::pairs::{Pair, Work, linux_figure, pair_of};
use super::plot::{Curves, FLOOR, GRID, LINUX, OURS};
use super::row::Figures;
use super::row::Row;
use super::targets::{ELSEWHERE, Judged};
use super::text::{self, FURTHEST_WORDS, by_operation};

/// The page's style: one set of colours on white, and one on black for those who prefer that.
const STYLE: &str = include_str!("page.css");

/// How the names of operations begin that the floors are made of: they are not plotted themselves.
const BARE: &str = "bare: ";

/// Writes the page.
///
/// # Errors
///
/// A picture cannot be drawn, or the file cannot be written.
pub(crate) fn write(file: &Path, title: &str, figures: Figures<'_>) -> Result<()> {
    fs::write(file, page(title, figures)?).with_context(|| format!("writing {}", file.display()))
}

fn page(title: &str, figures: Figures<'_>) -> Result<String> {
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{}{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p>Executed instructions, those of the guest and of the \
         hypervisor together, counted by the emulator: the same on every run. Instructions are not \
         time: what caches, TLBs and traps of a real CPU cost is not in them.</p>\n\
         <nav><a href=\"#targets\">Targets</a><a href=\"#furthest\">Furthest from the floor</a>\
         <a href=\"#operations\">Operations</a><a href=\"#figures\">All figures</a></nav>\n\
         <h2 id=\"targets\">Targets</h2>\n{}\
         <h2 id=\"furthest\">Furthest from the floor</h2>\n{}\
         <h2 id=\"operations\">Operations</h2>\n<p>Both axes are logarithmic. The band is the \
         floor: what bare requests for the same change take. A line that covers it is Xen's work \
         alone. Behind a name stands how much of it pvmmu takes in the largest size.</p>\n\
         <div class=\"plots\">\n{}</div>\n\
         <h2 id=\"figures\">All figures</h2>\n{}</body></html>\n",
        colours(),
        targets(figures),
        furthest(figures),
        plots(figures)?,
        rows(figures),
    ))
}

/// Returns the colours of the pictures by name, and rules that put the page's in their places.
fn colours() -> String {
    let mut css = String::new();
    let all = [("ours", OURS), ("linux", LINUX), ("floor", FLOOR), ("grid", GRID)];
    for (name, RGBColor(red, green, blue)) in all {
        let hex = format!("#{red:02X}{green:02X}{blue:02X}");
        let _ = write!(
            css,
            ":root{{--{name}:{hex}}}[stroke=\"{hex}\"]{{stroke:var(--{name})}}\
             [fill=\"{hex}\"]{{fill:var(--{name})}}"
        );
    }
    css
}

fn targets(figures: Figures<'_>) -> String {
    let mut html = "<table><tr><th>operation</th><th>size</th><th>against</th><th>at most</th>\
                    <th>is</th><th></th></tr>\n"
        .to_owned();
    for (target, judged) in figures.judged() {
        let [against, most, is, word] = text::target_words(target, judged);
        let class = match judged {
            Judged::Missed(_) => "missed",
            Judged::Met(_) => "met",
            Judged::Unknown => "unknown",
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{against}</td><td>{most}</td><td>{is}</td>\
             <td class=\"{class}\">{word}</td></tr>",
            target.operation,
            grouped(target.size)
        );
    }
    html.push_str("</table>\n<h3>Judged elsewhere</h3>\n<ul>\n");
    for target in ELSEWHERE {
        let (promise, command) = (target.promise, target.command);
        let _ = writeln!(html, "<li>{promise}: <code>{command}</code></li>");
    }
    html + "</ul>\n"
}

fn furthest(figures: Figures<'_>) -> String {
    let [head, of_floor, in_xen] = FURTHEST_WORDS;
    let mut html = format!(
        "<table><tr><th>{head}</th><th>size</th><th>{of_floor}</th><th>{in_xen}</th></tr>\n"
    );
    for (row, [of_floor, in_xen]) in text::furthest_rows(figures.rows) {
        let (name, size) = (&row.operation, grouped(row.size));
        let _ = writeln!(
            html,
            "<tr><td>{name}</td><td>{size}</td><td>{of_floor}</td><td>{in_xen}</td></tr>"
        );
    }
    html + "</table>\n"
}

/// Returns a number with its digits in threes.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Returns a picture for each operation in more than one size.
fn plots(figures: Figures<'_>) -> Result<String> {
    let rows = by_operation(figures.rows);
    let mut html = String::new();
    for group in rows.chunk_by(|one, other| one.operation == other.operation) {
        let [first, .., last] = group else { continue };
        if first.operation.starts_with(BARE) {
            continue;
        }
        let curves = curves(group, figures.linux);
        let _ = writeln!(
            html,
            "<figure><figcaption>{}{}<small>{}</small></figcaption>{}</figure>",
            first.operation,
            key(last, figures.linux),
            beside(&first.operation, &curves),
            curves.svg(&first.unit)?
        );
    }
    Ok(html)
}

/// Returns the names of the curves, in their colours, with what we are of each in the largest size.
fn key(last: &Row, linux: &[Row]) -> String {
    let share = |of: u64| format!("{:.3}", last.instructions as f64 / of.max(1) as f64);
    let mut html = "<p class=\"key\"><span class=\"ours\">pvmmu</span>".to_owned();
    let others = [("linux", "Linux", linux_figure(linux, last)), ("floor", "floor", last.floor)];
    for (class, name, figure) in others {
        if let Some(figure) = figure {
            let share = share(figure);
            let _ = write!(html, "<span class=\"{class}\">{name}<b>{share} of it</b></span>");
        }
    }
    html + "</p>"
}

/// Returns how far it is the same work as Linux's.
fn beside(operation: &str, curves: &Curves) -> String {
    match pair_of(operation).filter(|_| !curves.linux.is_empty()) {
        None => String::new(),
        Some(Pair { linux, work: Work::Same, .. }) => {
            format!("beside Linux's {linux}: the same work")
        }
        Some(Pair { linux, work: Work::Similar(words), .. }) => {
            format!("beside Linux's {linux}: {words}")
        }
    }
}

fn curves(group: &[&Row], linux: &[Row]) -> Curves {
    let points = |figure: &dyn Fn(&Row) -> Option<u64>| {
        let points = group.iter().filter_map(|row| Some((row.size, figure(row)?)));
        points.filter(|(size, figure)| *size > 0 && *figure > 0).collect()
    };
    Curves {
        ours: points(&|row| Some(row.instructions)),
        linux: points(&|row| linux_figure(linux, row)),
        floor: points(&|row| row.floor),
    }
}

fn rows(figures: Figures<'_>) -> String {
    let mut html =
        "<table class=\"wide\"><tr><th>operation</th><th>size</th><th></th><th>instructions</th>\
                    <th>each</th><th>in Xen</th><th>traps</th><th>entries</th><th>of floor</th>\
                    <th>of Linux</th></tr>\n"
            .to_owned();
    for row in by_operation(figures.rows) {
        let (size, instructions) = (grouped(row.size), grouped(row.instructions));
        let _ = write!(html, "<tr><td>{}</td><td>{size}</td>", row.operation);
        let _ = write!(html, "<td>{}</td><td>{instructions}</td>", row.unit);
        for word in text::row_words(row, figures.linux) {
            let _ = write!(html, "<td>{word}</td>");
        }
        html.push_str("</tr>\n");
    }
    html + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn the_page_has_a_picture_for_each_operation_in_several_sizes() {
        let rows = [test_row("unmap", 1, 10), test_row("unmap", 4, 30), test_row("load", 1, 5)];
        let linux = [test_row("munmap", 1, 100), test_row("munmap", 4, 300)];
        let figures = Figures { rows: &rows, linux: &linux, host: &[] };
        let page = page("Title", figures).unwrap();
        assert_eq!(page.matches("<svg").count(), 1, "{page}");
        assert!(page.contains("beside Linux's munmap: "), "{page}");
        assert!(page.contains("Linux<b>0.100 of it</b>"), "{page}");
        assert!(page.contains("<td>load</td>"), "{page}");
        assert_eq!(page.matches("<tr>").count(), 3 + figures.judged().len() + rows.len());
    }

    #[test]
    fn digits_stand_in_threes() {
        let grouped = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }
}
