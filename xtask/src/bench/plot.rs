//! Figures as pictures: one point per kill, coloured by the way it was killed; one bar per workload.

use crate::machine::crash::KINDS;
use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

const COLOURS: [RGBColor; 7] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(23, 190, 207),
];

/// The way of a kill, and milliseconds.
type Point = (String, f64);

/// Draws kills as SVG.
///
/// # Errors
/// The file cannot be written.
pub fn points(file: &Path, caption: &str, kills: &[Point]) -> Result<()> {
    folder(file)?;
    draw_points(file, caption, kills).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

/// A ratio: its name, what it is, what it shall be.
pub type Ratio<'a> = (&'a str, f64, f64);

/// Draws ratios as SVG, each with a line at its aim.
///
/// # Errors
/// The file cannot be written.
pub fn ratios(file: &Path, caption: &str, rows: &[Ratio<'_>]) -> Result<()> {
    folder(file)?;
    draw_ratios(file, caption, rows).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn folder(file: &Path) -> Result<()> {
    let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn draw_points(file: &Path, caption: &str, kills: &[Point]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let top = kills.iter().map(|(_, ms)| *ms).fold(10.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0..kills.len().max(1), 0.0..top)?;
    chart.configure_mesh().x_desc("kill").y_desc("ms").light_line_style(WHITE).draw()?;
    for (kind, colour) in KINDS.iter().zip(COLOURS) {
        let points = kills.iter().enumerate().filter(|(_, (how, _))| how == kind);
        chart
            .draw_series(points.map(|(i, (_, ms))| Circle::new((i, *ms), 3, colour.filled())))?
            .label(*kind)
            .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}

fn draw_ratios(file: &Path, caption: &str, rows: &[Ratio<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (1000, 360)).into_drawing_area();
    root.fill(&WHITE)?;
    let top = rows.iter().map(|(_, ratio, aim)| ratio.max(*aim) * 100.0).fold(100.0, f64::max) * 1.15;
    let end = rows.len().max(1) as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(12)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart.configure_mesh().disable_x_mesh().x_labels(0).y_desc("%").light_line_style(WHITE).draw()?;
    let label = ("sans-serif", 13).into_font();
    for (at, (name, ratio, aim)) in (0..).map(f64::from).zip(rows) {
        let percent = ratio * 100.0;
        let bar = Rectangle::new([(at + 0.2, 0.0), (at + 0.8, percent)], COLOURS[0].mix(0.7).filled());
        chart.draw_series(std::iter::once(bar))?;
        // A long name takes a line for each of its parts.
        let parts =
            name.split(", ").enumerate().map(|(line, part)| (top * (0.12 - 0.06 * line as f64), part.to_string()));
        let texts = std::iter::once((percent + top * 0.06, format!("{percent:.0} %"))).chain(parts);
        chart.draw_series(texts.map(|(y, text)| Text::new(text, (at + 0.1, y), label.clone())))?;
        chart.draw_series(LineSeries::new([(at + 0.1, aim * 100.0), (at + 0.9, aim * 100.0)], COLOURS[3]))?;
    }
    root.present()?;
    Ok(())
}
