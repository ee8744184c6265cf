//! What came out: medians, ratios, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A load on a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) system: &'static str,
}

/// What one round measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// CPU time of the subject per operation, in microseconds.
    pub(crate) subject_us: f64,
    /// CPU time of the server behind per operation, in microseconds.
    pub(crate) behind_us: f64,
    pub(crate) per_second: f64,
}

/// Latencies of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) per_second: f64,
}

/// One worker of one process.
pub(crate) const ONE_WORKER: &str = "1";
/// Two workers of one process.
pub(crate) const TWO_WORKERS: &str = "2";
/// Two processes of one worker each.
pub(crate) const TWO_PROCESSES: &str = "2, each a process of its own";

/// What one round measured of workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers {
    /// CPU time of all workers per operation, in microseconds.
    pub(crate) cpu_us: f64,
    /// That of the worker with the most: it bounds the whole.
    pub(crate) busiest_us: f64,
    /// Operations a second.
    pub(crate) per_second: f64,
}

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<Row, Vec<Sample>>,
    /// The order in which loads came first.
    cases: Vec<&'static str>,
    latencies: BTreeMap<&'static str, Vec<Latency>>,
    workers: BTreeMap<&'static str, Vec<Workers>>,
}

/// One line of the table.
pub(crate) struct Line {
    pub(crate) row: Row,
    pub(crate) subject_us: f64,
    pub(crate) behind_us: f64,
    pub(crate) per_second: f64,
    /// CPU time of subject and server behind, by that of the first system of the same load, in the same round.
    pub(crate) ratio: f64,
    /// The subject's CPU time alone, by the same.
    pub(crate) subject_ratio: f64,
}

// === impl Report ===

impl Report {
    pub(crate) fn add(&mut self, row: Row, sample: Sample) {
        if !self.cases.contains(&row.case) {
            self.cases.push(row.case);
        }
        self.rows.entry(row).or_default().push(sample);
    }

    pub(crate) fn add_latency(&mut self, system: &'static str, latency: Latency) {
        self.latencies.entry(system).or_default().push(latency);
    }

    pub(crate) fn add_workers(&mut self, name: &'static str, workers: Workers) {
        self.workers.entry(name).or_default().push(workers);
    }

    /// Medians by what was measured, in the order of their names.
    fn worker_lines(&self) -> impl Iterator<Item = (&'static str, Workers)> + '_ {
        let of = |samples: &[Workers], part: fn(&Workers) -> f64| median(samples.iter().map(part).collect());
        self.workers.iter().map(move |(name, samples)| {
            let (cpu_us, busiest_us) = (of(samples, |w| w.cpu_us), of(samples, |w| w.busiest_us));
            (*name, Workers { cpu_us, busiest_us, per_second: of(samples, |w| w.per_second) })
        })
    }

    /// How many times as much as one worker two can serve, and how many times as much as one of two processes, by the CPU time of
    /// the busiest.
    fn scaling(&self) -> Option<(f64, f64)> {
        let of = |wanted| self.worker_lines().find(|(name, _)| *name == wanted).map(|(_, workers)| workers);
        let (one, two, apart) = (of(ONE_WORKER)?, of(TWO_WORKERS)?, of(TWO_PROCESSES)?);
        Some((one.busiest_us / two.busiest_us, apart.cpu_us / two.busiest_us))
    }

    /// The lines, by load; what all are compared with comes first: the server itself, else Larder when it forwards.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for case in &self.cases {
            let mut of_case: Vec<(&Row, &Vec<Sample>)> =
                self.rows.iter().filter(|(row, _)| row.case == *case).collect();
            of_case
                .sort_by_key(|(row, _)| (row.system != "redis-server", row.system != "larder, forwarding", row.system));
            let Some((_, base)) = of_case.first() else { continue };
            for (row, samples) in &of_case {
                let against = |of: fn(&Sample) -> f64| {
                    let ratios = samples.iter().zip(base.iter()).map(|(s, b)| of(s) / (b.subject_us + b.behind_us));
                    median(ratios.collect())
                };
                lines.push(Line {
                    row: **row,
                    subject_us: median(samples.iter().map(|s| s.subject_us).collect()),
                    behind_us: median(samples.iter().map(|s| s.behind_us).collect()),
                    per_second: median(samples.iter().map(|s| s.per_second).collect()),
                    ratio: against(|s| s.subject_us + s.behind_us),
                    subject_ratio: against(|s| s.subject_us),
                });
            }
        }
        lines
    }

    /// Medians of the latencies: p50, p99, p99.9, and the rate asked for.
    pub(crate) fn latency_lines(&self) -> Vec<(&'static str, Latency)> {
        let of = |samples: &[Latency], part: fn(&Latency) -> f64| median(samples.iter().map(part).collect());
        let line = |samples: &Vec<Latency>| Latency {
            p50_us: of(samples, |l| l.p50_us),
            p99_us: of(samples, |l| l.p99_us),
            p999_us: of(samples, |l| l.p999_us),
            per_second: of(samples, |l| l.per_second),
        };
        let mut lines: Vec<_> = self.latencies.iter().map(|(system, samples)| (*system, line(samples))).collect();
        lines.sort_by_key(|(system, _)| (*system != "redis-server", *system));
        lines
    }

    /// As Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| load | system | CPU us/op | + server behind | subject, ratio | both, ratio | thousand op/s |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for line in self.lines() {
            let Line { row, subject_us, behind_us, per_second, ratio, subject_ratio } = line;
            let (case, system) = (row.case, row.system);
            let _ = writeln!(
                text,
                "| {case} | {system} | {subject_us:.3} | {behind_us:.3} | {subject_ratio:.2} | {ratio:.2} | {:.0} |",
                per_second / 1000.0
            );
        }
        if !self.latencies.is_empty() {
            text.push_str(
                "\n| GET 64 B at a fixed rate | p50 us | p99 us | p99.9 us | op/s |\n|---|---|---|---|---|\n",
            );
            for (system, l) in self.latency_lines() {
                let _ = writeln!(
                    text,
                    "| {system} | {:.0} | {:.0} | {:.0} | {:.0} |",
                    l.p50_us, l.p99_us, l.p999_us, l.per_second
                );
            }
        }
        if let Some((of_one, of_a_process)) = self.scaling() {
            text.push_str(
                "\n| workers (hits, pipeline 16), each with a generator on its core | CPU us/op | the busiest worker's | thousand op/s |\n\
                 |---|---|---|---|\n",
            );
            for (name, Workers { cpu_us, busiest_us, per_second }) in self.worker_lines() {
                let _ = writeln!(text, "| {name} | {cpu_us:.3} | {busiest_us:.3} | {:.0} |", per_second / 1000.0);
            }
            let _ = writeln!(
                text,
                "\nBy the CPU time of the busiest worker, two workers serve {of_one:.2} times what one does whose generator is on \
                 its own core, and {of_a_process:.2} times what one does of two that have nothing in common."
            );
        }
        text
    }

    /// For programs. Names hold nothing that JSON would have to escape.
    pub(crate) fn json(&self) -> String {
        let lines = self.lines().into_iter().map(|line| {
            format!(
                "{{\"load\":\"{}\",\"system\":\"{}\",\"subject_us\":{:.4},\"behind_us\":{:.4},\"subject_ratio\":{:.4},\
                 \"ratio\":{:.4},\"per_second\":{:.0},\"rounds\":{}}}",
                line.row.case,
                line.row.system,
                line.subject_us,
                line.behind_us,
                line.subject_ratio,
                line.ratio,
                line.per_second,
                self.rows.get(&line.row).map_or(0, Vec::len)
            )
        });
        let latencies = self.latency_lines().into_iter().map(|(system, l)| {
            format!(
                "{{\"system\":\"{system}\",\"p50_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"per_second\":{:.0}}}",
                l.p50_us, l.p99_us, l.p999_us, l.per_second
            )
        });
        let scaling = self.scaling().map_or("null".to_owned(), |(of_one, apart)| format!("[{of_one:.3},{apart:.3}]"));
        format!(
            "{{\"cpu\":[\n{}\n],\"latency\":[\n{}\n],\"two_threads\":{scaling}}}\n",
            lines.collect::<Vec<_>>().join(",\n"),
            latencies.collect::<Vec<_>>().join(",\n")
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
