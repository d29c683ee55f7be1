//! The outages as a picture: one point per kill, coloured by the way it was killed.

use crate::machine::crash::{KINDS, Outcome};
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

/// Draws them as SVG.
///
/// # Errors
/// The file cannot be written.
pub fn outages(file: &Path, kills: &[Outcome]) -> Result<()> {
    if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    draw(file, kills).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn draw(file: &Path, kills: &[Outcome]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let top = kills.iter().map(|k| k.outage_ms).fold(10.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .caption("Longest time without a delivered packet, per kill", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0..kills.len().max(1), 0.0..top)?;
    chart.configure_mesh().x_desc("kill").y_desc("ms").light_line_style(WHITE).draw()?;
    for (kind, colour) in KINDS.iter().zip(COLOURS) {
        let points = kills.iter().enumerate().filter(|(_, k)| k.how == *kind);
        chart
            .draw_series(points.map(|(i, k)| Circle::new((i, k.outage_ms), 3, colour.filled())))?
            .label(*kind)
            .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}
