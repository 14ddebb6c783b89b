//! The report as one page for a browser, which needs nothing else: targets, pictures, all rows.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::pairs::{Work, linux_figure, pair_of};
use super::plot::{Curves, FLOOR, LINUX, OURS};
use super::row::Row;
use super::targets::{ELSEWHERE, Judged};
use super::text::{self, Figures, by_operation};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;\
    color:#222;background:#fff}h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}\
    table{border-collapse:collapse}td,th{padding:.15em .7em;text-align:right;\
    border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}th{position:sticky;top:0;\
    background:#fff}td:first-child,th:first-child{text-align:left}.missed{color:#b00020;\
    font-weight:bold}.met{color:#00703c}.unknown{color:#666}.plots{display:grid;gap:1.5em;\
    grid-template-columns:repeat(auto-fill,minmax(420px,1fr))}\
    figure{margin:0;display:flex;flex-direction:column;justify-content:space-between}\
    figcaption{font-weight:bold}figcaption small{display:block;font-weight:normal;color:#555}\
    svg{width:100%;height:auto}.key span{margin-right:1.5em;font-weight:bold}";

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
    let colour =
        |colour: plotters::style::RGBColor| format!("rgb({},{},{})", colour.0, colour.1, colour.2);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p>Executed instructions, those of the guest and of the \
         hypervisor together, counted by the emulator: the same on every run. Instructions are not \
         time: what caches, TLBs and traps of a real CPU cost is not in them.</p>\n\
         <h2>Targets</h2>\n{}<h2>Operations</h2>\n<p class=\"key\"><span style=\"color:{}\">pvmmu\
         </span><span style=\"color:{}\">Linux</span><span style=\"color:{}\">floor: bare requests \
         for the same change</span></p>\n<div class=\"plots\">\n{}</div>\n<h2>All figures</h2>\n{}\
         </body></html>\n",
        targets(figures),
        colour(OURS),
        colour(LINUX),
        colour(FLOOR),
        plots(figures)?,
        rows(figures),
    ))
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
            target.operation, target.size
        );
    }
    html.push_str("</table>\n<h3>Judged elsewhere</h3>\n<ul>\n");
    for target in ELSEWHERE {
        let (promise, command) = (target.promise, target.command);
        let _ = writeln!(html, "<li>{promise}: <code>{command}</code></li>");
    }
    html + "</ul>\n"
}

/// A picture for each operation in more than one size.
fn plots(figures: Figures<'_>) -> Result<String> {
    let rows = by_operation(figures.rows);
    let mut html = String::new();
    for group in rows.chunk_by(|one, other| one.operation == other.operation) {
        let [first, _, ..] = group else { continue };
        if first.operation.starts_with(BARE) {
            continue;
        }
        let curves = curves(group, figures.linux);
        let beside = match pair_of(&first.operation).filter(|_| !curves.linux.is_empty()) {
            None => String::new(),
            Some(pair) => match pair.work {
                Work::Same => format!("beside Linux's {}: the same work", pair.linux),
                Work::Similar(words) => format!("beside Linux's {}: {words}", pair.linux),
            },
        };
        let _ = writeln!(
            html,
            "<figure><figcaption>{}<small>{beside}</small></figcaption>{}</figure>",
            first.operation,
            curves.svg(&first.unit)?
        );
    }
    Ok(html)
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
    let mut html = "<table><tr><th>operation</th><th>size</th><th></th><th>instructions</th>\
                    <th>each</th><th>in Xen</th><th>traps</th><th>entries</th><th>of floor</th>\
                    <th>of Linux</th></tr>\n"
        .to_owned();
    for row in by_operation(figures.rows) {
        let _ = write!(html, "<tr><td>{}</td><td>{}</td>", row.operation, row.size);
        let _ = write!(html, "<td>{}</td><td>{}</td>", row.unit, row.instructions);
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
        assert!(page.contains("<td>load</td>"), "{page}");
        assert_eq!(page.matches("<tr>").count(), 2 + figures.judged().len() + rows.len());
    }
}
