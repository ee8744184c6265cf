//! The plots that README shows.

use super::report::Report;
use plotters::prelude::*;
use std::error::Error;
use std::io;
use std::path::Path;

const WIDTH: u32 = 760;
const BAR_HEIGHT: i32 = 22;
const GAP: i32 = 6;
const HEAD_HEIGHT: i32 = 40;
const LABEL_WIDTH: i32 = 360;
const VALUE_WIDTH: i32 = 90;

const LARDER: RGBColor = RGBColor(0x2f, 0x6f, 0x4e);
const BEHIND: RGBColor = RGBColor(0xc9, 0xd6, 0xcf);
const OTHERS: RGBColor = RGBColor(0x8a, 0x8f, 0x98);

/// One bar: its label, the subject's part, and that of the server behind.
struct Bar {
    label: String,
    subject: f64,
    behind: f64,
    text: String,
}

/// Draws CPU time per operation at pipeline 1 and 16, and latencies.
pub(crate) fn draw(report: &Report, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for pipeline in ["pipeline 1", "pipeline 16"] {
        let lines = report.lines().into_iter().filter(|line| line.row.case.ends_with(pipeline));
        let bars = lines.map(|line| Bar {
            label: format!("{}: {}", line.row.case.trim_end_matches(pipeline).trim_end_matches(", "), line.row.system),
            subject: line.subject_us,
            behind: line.behind_us,
            text: format!("{:.2}", line.subject_us),
        });
        let title = format!("CPU time per operation at {pipeline}, in microseconds (pale: the server behind)");
        let file = directory.join(format!("cpu-{}.svg", pipeline.replace(' ', "-")));
        chart(&file, &title, &bars.collect::<Vec<_>>()).map_err(|e| io::Error::other(e.to_string()))?;
    }
    let bars = report.latency_lines().into_iter().flat_map(|(system, l)| {
        [("p50", l.p50_us), ("p99", l.p99_us)].map(|(name, us)| Bar {
            label: format!("{name}: {system}"),
            subject: us,
            behind: 0.0,
            text: format!("{us:.0}"),
        })
    });
    let title = "Latency of GET at half of the most throughput, in microseconds";
    chart(&directory.join("latency.svg"), title, &bars.collect::<Vec<_>>()).map_err(|e| io::Error::other(e.to_string()))
}

fn chart(file: &Path, title: &str, bars: &[Bar]) -> Result<(), Box<dyn Error>> {
    let most = bars.iter().map(|bar| bar.subject + bar.behind).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    let rows = i32::try_from(bars.len())?;
    let height = HEAD_HEIGHT + rows * (BAR_HEIGHT + GAP) + GAP;
    let area = SVGBackend::new(file, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title, (10, 12), ("sans-serif", 15).into_font()))?;
    let room = f64::from(i32::try_from(WIDTH)? - LABEL_WIDTH - VALUE_WIDTH);
    let pixels = |value: f64| (value / most * room).round() as i32;
    for (row, bar) in (0..).zip(bars) {
        let top = HEAD_HEIGHT + row * (BAR_HEIGHT + GAP);
        let bottom = top + BAR_HEIGHT;
        let colour = if bar.label.contains("larder") { LARDER } else { OTHERS };
        let (middle, end) = (LABEL_WIDTH + pixels(bar.subject), LABEL_WIDTH + pixels(bar.subject + bar.behind));
        area.draw(&Text::new(bar.label.clone(), (10, top + 4), ("sans-serif", 13).into_font()))?;
        area.draw(&Rectangle::new([(LABEL_WIDTH, top), (middle, bottom)], colour.filled()))?;
        area.draw(&Rectangle::new([(middle, top), (end, bottom)], BEHIND.filled()))?;
        area.draw(&Text::new(bar.text.clone(), (end + 6, top + 4), ("sans-serif", 13).into_font()))?;
    }
    area.present()?;
    Ok(())
}
