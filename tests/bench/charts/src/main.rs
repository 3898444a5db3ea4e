//! Draws the charts of a directory with a `models.csv` of `tests/bench/models`, one for each question.

use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Deserialize;

/// A line of `models.csv`.
#[derive(Debug, Deserialize)]
struct Row {
    model: String,
    connections: u32,
    handler: String,
    requests_per_s: Option<f64>,
    cpu_us: Option<f64>,
    p99_ms: Option<f64>,
    switches: Option<f64>,
    memory_kib: Option<f64>,
}

/// A chart: a figure against the number of connections, a line for each model.
struct Question {
    file: &'static str,
    title: &'static str,
    unit: &'static str,
    /// Figures of this kind of handler.
    handler: &'static str,
    figure: fn(&Row) -> Option<f64>,
}

const QUESTIONS: &[Question] = &[
    Question {
        file: "throughput-instant.svg",
        title: "Requests a second: an instant handler",
        unit: "requests/s",
        handler: "instant",
        figure: |row| row.requests_per_s,
    },
    Question {
        file: "throughput-wait.svg",
        title: "Requests a second: a handler that waits 5 ms",
        unit: "requests/s",
        handler: "wait",
        figure: |row| row.requests_per_s,
    },
    Question {
        file: "throughput-cpu.svg",
        title: "Requests a second: a handler that computes for 2 ms",
        unit: "requests/s",
        handler: "cpu",
        figure: |row| row.requests_per_s,
    },
    Question {
        file: "cost.svg",
        title: "Processor time a request: an instant handler",
        unit: "µs",
        handler: "instant",
        figure: |row| row.cpu_us,
    },
    Question {
        file: "p99-instant.svg",
        title: "99 of 100 answers come within: an instant handler",
        unit: "ms",
        handler: "instant",
        figure: |row| row.p99_ms,
    },
    Question {
        file: "p99-wait.svg",
        title: "99 of 100 answers come within: a handler that waits 5 ms",
        unit: "ms",
        handler: "wait",
        figure: |row| row.p99_ms,
    },
    Question {
        file: "p99-cpu.svg",
        title: "99 of 100 answers come within: a handler that computes for 2 ms",
        unit: "ms",
        handler: "cpu",
        figure: |row| row.p99_ms,
    },
    Question {
        file: "memory.svg",
        title: "Memory that an idle connection costs the worker and its processes",
        unit: "KiB",
        handler: "instant",
        figure: |row| row.memory_kib,
    },
    Question {
        file: "switches.svg",
        title: "Context switches a request: an instant handler",
        unit: "switches",
        handler: "instant",
        figure: |row| row.switches,
    },
];

const SIZE: (u32, u32) = (900, 560);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("which directory?")?);
    let rows: Vec<Row> =
        csv::Reader::from_path(directory.join("models.csv"))?.deserialize().collect::<Result<_, _>>()?;
    for question in QUESTIONS {
        draw(&directory, question, &rows).map_err(|error| format!("{}: {error}", question.file))?;
    }
    Ok(())
}

fn draw(directory: &Path, question: &Question, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let mut models: Vec<&str> = Vec::new();
    for row in rows {
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    let lines: Vec<(usize, &str, Vec<(f64, f64)>)> = models
        .iter()
        .enumerate()
        .map(|(number, model)| {
            let of_model = rows.iter().filter(|row| row.model == *model && row.handler == question.handler);
            let points = of_model.filter_map(|row| Some((f64::from(row.connections), (question.figure)(row)?)));
            (number, *model, points.filter(|(_, y)| *y > 0.0).collect())
        })
        .filter(|(_, _, points): &(usize, &str, Vec<_>)| !points.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|(_, _, points)| points);
    let (Some((first, last)), Some((lowest, highest))) =
        (bounds(all().map(|(x, _)| *x)), bounds(all().map(|(_, y)| *y)))
    else {
        eprintln!("{}: not drawn, nothing was measured", question.file);
        return Ok(());
    };

    let path = directory.join(question.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(question.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((first * 0.8..last * 16.0).log_scale(), (lowest * 0.7..highest * 1.4).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("connections")
        .y_desc(question.unit)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .light_line_style(WHITE)
        .draw()?;
    for (number, model, points) in &lines {
        let style = style_of(*number);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*model)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, style.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    present(&area)
}

fn present(area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>> {
    Ok(area.present()?)
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

/// Colours that those tell apart too who see few (after Okabe and Ito).
fn style_of(number: usize) -> ShapeStyle {
    const COLOURS: [RGBColor; 10] = [
        RGBColor(0, 0, 0),
        RGBColor(120, 120, 120),
        RGBColor(180, 180, 180),
        RGBColor(86, 180, 233),
        RGBColor(0, 114, 178),
        RGBColor(0, 158, 115),
        RGBColor(213, 94, 0),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(140, 86, 75),
    ];
    COLOURS[number % COLOURS.len()].stroke_width(2)
}

fn label(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}
