//! A picture of one operation: instructions over size, both logarithmic, with a curve for Linux,
//! one for us and one for the floor.

use anyhow::{Error, Result};
use plotters::prelude::*;

/// Width and height of a picture, in its own units.
const SIZE: (u32, u32) = (440, 300);

/// Points of a curve: size, instructions.
pub(crate) type Points = Vec<(u64, u64)>;

/// The curves of a picture. One that has no points is left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curves {
    /// Ours.
    pub(crate) ours: Points,
    /// Linux's.
    pub(crate) linux: Points,
    /// What bare requests take.
    pub(crate) floor: Points,
}

/// The colours of the curves, told apart by those who see fewer of them too.
pub(crate) const OURS: RGBColor = RGBColor(0, 114, 178);
/// Linux's.
pub(crate) const LINUX: RGBColor = RGBColor(213, 94, 0);
/// The floor's.
pub(crate) const FLOOR: RGBColor = RGBColor(120, 120, 120);

impl Curves {
    /// The curves with their names and colours, in the order in which they are drawn.
    fn all(&self) -> [(&'static str, RGBColor, &Points); 3] {
        [("floor", FLOOR, &self.floor), ("Linux", LINUX, &self.linux), ("pvmmu", OURS, &self.ours)]
    }

    /// Draws them, as an SVG element.
    ///
    /// # Errors
    ///
    /// There is nothing to draw, or the library fails.
    pub(crate) fn svg(&self, unit: &str) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg, unit).map_err(|error| Error::msg(format!("a plot: {error}")))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String, unit: &str) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.all().into_iter().flat_map(|(.., points)| points.iter().copied());
        let range = |values: &mut dyn Iterator<Item = u64>| {
            let (low, high) =
                values.fold((u64::MAX, 1), |(low, high), it| (low.min(it), high.max(it)));
            (low.min(high).max(1) as f64, high as f64)
        };
        let (left, right) = range(&mut points().map(|(x, _)| x));
        let (low, high) = range(&mut points().map(|(_, y)| y));
        let (x, y) = ((left / 1.5)..(right * 1.5), decades(low, high));
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(62)
            .build_cartesian_2d(x.log_scale(), y.log_scale())?;
        chart
            .configure_mesh()
            .x_desc(unit)
            .y_desc("instructions")
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (name, colour, points) in self.all() {
            if points.is_empty() {
                continue;
            }
            let curve = points.iter().map(|(x, y)| (*x as f64, *y as f64));
            let line = LineSeries::new(curve.clone(), colour.stroke_width(2));
            chart.draw_series(line)?.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
            chart.draw_series(curve.map(|at| Circle::new(at, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(225, 225, 225))
            .label_font(("sans-serif", 13))
            .legend_area_size(24)
            .margin(8)
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// The whole decades that a range lies in, with some air where it touches one.
fn decades(low: f64, high: f64) -> std::ops::Range<f64> {
    10f64.powf((low / 1.2).log10().floor())..10f64.powf((high * 1.2).log10().ceil())
}

/// A number as short as a scale wants it.
fn short(value: f64) -> String {
    let scaled = |divisor: f64, letter: &str| {
        let text = format!("{:.1}", value / divisor);
        format!("{}{letter}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value {
        1e9.. => scaled(1e9, "G"),
        1e6.. => scaled(1e6, "M"),
        1e4.. => scaled(1e3, "k"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_that_has_points_is_drawn_and_named() {
        let mut curves = Curves { ours: vec![(1, 10), (512, 9000)], ..Curves::default() };
        let svg = curves.svg("pages").unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("pvmmu") && svg.contains("pages"));
        assert!(!svg.contains("Linux") && !svg.contains("floor"));
        curves.linux = vec![(1, 100)];
        curves.floor = vec![(1, 5), (512, 4000)];
        let svg = curves.svg("pages").unwrap();
        assert!(svg.contains("Linux") && svg.contains("floor"));
        assert_eq!(svg.matches("<circle").count(), 5);
    }

    #[test]
    fn a_scale_begins_and_ends_with_a_decade() {
        assert_eq!(decades(2.0, 512.0), 1.0..1000.0);
        assert_eq!(decades(20_000.0, 900_000.0), 10_000.0..10_000_000.0);
    }

    #[test]
    fn numbers_on_a_scale_are_short() {
        let short = [1.0, 512.0, 65_536.0, 1_000_000.0, 2.5e9].map(short);
        assert_eq!(short, ["1", "512", "65.5k", "1M", "2.5G"]);
    }
}
