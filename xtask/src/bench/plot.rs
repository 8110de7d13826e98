//! Figures as SVG, drawn by `plotters`.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::element::{Circle, PathElement};
use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, IntoDrawingArea as _, IntoLogRange as _, LineSeries, RGBColor,
    SVGBackend, SeriesLabelPosition, WHITE,
};

/// One chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it is about.
    pub title: String,
    /// What is counted from left to right.
    pub x: String,
    /// What is counted upwards.
    pub y: String,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points; nothing is below 0.
    pub points: Vec<(f64, f64)>,
}

const COLORS: [RGBColor; 5] = [
    RGBColor(0x55, 0x55, 0x55),
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
];
const WIDTH: u32 = 560;
const HEIGHT: u32 = 400;

/// Draw charts side by side. Both scales are logarithmic; nothing at all is drawn as 1.
///
/// # Errors
/// When the file can't be written.
pub fn draw(path: &Path, charts: &[Chart]) -> Result<()> {
    let count = u32::try_from(charts.len()).context("too many charts")?;
    let root = SVGBackend::new(path, (WIDTH * count, HEIGHT)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", path.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    for (area, chart) in root.split_evenly((1, charts.len())).iter().zip(charts) {
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        let right = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let top = points().map(|(_, y)| *y).fold(1.0, f64::max);
        let bottom = points().map(|(_, y)| *y).fold(top, f64::min).max(f64::MIN_POSITIVE);
        let mut context = ChartBuilder::on(area)
            .caption(&chart.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(
                (1.0..right * 1.1).log_scale(),
                (bottom / 1.5..top * 1.5).log_scale(),
            )
            .map_err(|e| failed(&e))?;
        context
            .configure_mesh()
            .x_desc(&chart.x)
            .y_desc(&chart.y)
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| failed(&e))?;
        for (line, color) in chart.lines.iter().zip(COLORS.iter().cycle()) {
            let color = *color;
            let points = line.points.iter().map(|(x, y)| (x.max(1.0), *y));
            context
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))
                .map_err(|e| failed(&e))?
                .label(&line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
            context
                .draw_series(points.map(|point| Circle::new(point, 3, color.filled())))
                .map_err(|e| failed(&e))?;
        }
        context
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let line = |name: &str, y: f64| Line {
            name: name.to_owned(),
            points: vec![(0.0, y), (10.0, y), (10_000.0, 2.0 * y)],
        };
        let chart = Chart {
            title: "A title".to_owned(),
            x: "across".to_owned(),
            y: "upwards".to_owned(),
            lines: vec![line("slow", 300.0), line("fast", 20.0)],
        };
        draw(&path, &[chart.clone(), chart]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["A title", "across", "upwards", "slow", "fast"] {
            assert_eq!(svg.matches(text).count(), 2, "{text} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 12);
    }
}
