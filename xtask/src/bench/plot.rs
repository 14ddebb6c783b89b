//! A picture of one operation: instructions over size, both logarithmic, with a curve for Linux,
//! one for us and one for the floor.

use anyhow::{Error, Result};
use plotters::prelude::*;

/// Width and height of a picture, in its own units.
const SIZE: (u32, u32) = (440, 300);

/// Sizes are close together if the largest one is less than so many times the smallest.
const NARROW: f64 = 20.0;

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

/// Our colour: told from the others by those who see fewer colours too. The page's style names
/// these, and gives each a lighter one where the background is dark.
pub(crate) const OURS: RGBColor = RGBColor(0, 114, 178);
/// Linux's.
pub(crate) const LINUX: RGBColor = RGBColor(213, 94, 0);
/// The floor's: a band that the others lie on.
pub(crate) const FLOOR: RGBColor = RGBColor(190, 190, 190);
/// The grid's.
pub(crate) const GRID: RGBColor = RGBColor(225, 225, 225);

impl Curves {
    /// All points.
    fn points(&self) -> impl Iterator<Item = (u64, u64)> {
        [&self.ours, &self.linux, &self.floor].into_iter().flatten().copied()
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
        let (left, right) = range(self.points().map(|(x, _)| x));
        let (low, high) = range(self.points().map(|(_, y)| y));
        // Between two decades there would be a line or none to read a size from.
        let x = if right < NARROW * left { decades(left, right) } else { left / 1.5..right * 1.5 };
        let y = decades(low, high);
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(58)
            .build_cartesian_2d(x.log_scale(), y.log_scale())?;
        chart
            .configure_mesh()
            .x_desc(unit)
            .y_desc("instructions")
            .label_style(("sans-serif", 13))
            .max_light_lines(0)
            .x_labels(6)
            .bold_line_style(GRID)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        let curve = |points: &Points| -> Vec<(f64, f64)> {
            points.iter().map(|(x, y)| (*x as f64, *y as f64)).collect()
        };
        let [floor, linux, ours] = [&self.floor, &self.linux, &self.ours].map(curve);
        chart.draw_series(LineSeries::new(floor, FLOOR.stroke_width(7)))?;
        chart.draw_series(LineSeries::new(linux.clone(), LINUX.stroke_width(2)))?;
        let corners = linux.into_iter().map(|at| TriangleMarker::new(at, 5, LINUX.filled()));
        chart.draw_series(corners)?;
        chart.draw_series(LineSeries::new(ours.clone(), OURS.stroke_width(2)))?;
        let dots = ours.into_iter().map(|at| Circle::new(at, 3, OURS.filled()));
        chart.draw_series(dots)?;
        root.present()?;
        Ok(())
    }
}

/// From where to where values go.
fn range(values: impl Iterator<Item = u64>) -> (f64, f64) {
    let widen = |(low, high): (u64, u64), it| (low.min(it), high.max(it));
    let (low, high) = values.fold((u64::MAX, 1), widen);
    (low.min(high).max(1) as f64, high as f64)
}

/// Returns the whole decades that a range lies in, with some air where it touches one.
fn decades(low: f64, high: f64) -> std::ops::Range<f64> {
    10f64.powf((low / 1.2).log10().floor())..10f64.powf((high * 1.2).log10().ceil())
}

/// Returns a number as short as a scale wants it.
fn short(value: f64) -> String {
    let scaled = |divisor: f64, letter: &str| {
        let text = format!("{:.1}", value / divisor);
        format!("{}{letter}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value {
        1e9.. => scaled(1e9, "G"),
        1e6.. => scaled(1e6, "M"),
        1e3.. => scaled(1e3, "k"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_that_has_points_is_drawn() {
        let mut curves = Curves { ours: vec![(1, 10), (512, 9000)], ..Curves::default() };
        let count = |curves: &Curves, mark| curves.svg("pages").unwrap().matches(mark).count();
        assert!(curves.svg("pages").unwrap().starts_with("<svg"));
        assert_eq!(["<circle", "<polygon", "\"7\""].map(|mark| count(&curves, mark)), [2, 0, 0]);
        curves.linux = vec![(1, 100)];
        curves.floor = vec![(1, 5), (512, 4000)];
        assert_eq!(["<circle", "<polygon", "\"7\""].map(|mark| count(&curves, mark)), [2, 1, 1]);
    }

    #[test]
    fn a_scale_begins_and_ends_with_a_decade() {
        assert_eq!(decades(2.0, 512.0), 1.0..1000.0);
        assert_eq!(decades(20_000.0, 900_000.0), 10_000.0..10_000_000.0);
    }

    #[test]
    fn numbers_on_a_scale_are_short() {
        let short = [1.0, 512.0, 1000.0, 65_536.0, 1_000_000.0, 2.5e9].map(short);
        assert_eq!(short, ["1", "512", "1k", "65.5k", "1M", "2.5G"]);
    }
}
