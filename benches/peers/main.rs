//! Larder beside its peers, in one run: CPU time per operation, throughput, latency; as ratios to redis-server.
//!
//! ```text
//! cargo bench --bench peers                          the whole, a quarter of an hour or so
//! cargo bench --bench peers -- --rounds 1 --quick    a look
//! ```
//!
//! Starts redis-server, Larder in several shapes, and the proxies that are installed (nutcracker, predixy), each on a core
//! of its own; the generator and the server behind a proxy share another core. What is asked for *never idle* comes from a generator
//! that is quick enough for all of them; the others from redis-benchmark, which is not, so that who is quicker than it
//! sleeps and wakes between batches, and pays for that. Each round measures every pair of system
//! and load once, so that what else the machine does meets all alike; the table shows medians over the rounds, and the
//! median of the ratios within each round. CPU time is the subject's user and system time from `/proc`, and beside it
//! that of the server behind.
//!
//! Writes `target/peers/result.json` and the table, `target/peers/table.md`; with `--plots DIRECTORY` the plots, as SVG.
//!
//! Needs redis-server, redis-benchmark and taskset.

mod latency;
mod load;
mod plots;
mod report;
mod saturate;
mod stand;

use clap::Parser;
use latency::Pace;
use load::{Load, Verb};
use report::{Latency, ONE_WORKER, Report, Row, Sample, TWO_PROCESSES, TWO_WORKERS, Workers};
use stand::{Cores, Process, is_installed, start};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

/// Keys that all but the loads that read each key once use: they fit into L1.
const KEYS: u64 = 10_000;
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 1024;
/// How often latencies are measured in a round, a second for each system.
const LATENCY_TURNS: usize = 5;
/// How often one and two workers are measured in a round, in turn.
const WORKERS_TURNS: usize = 3;

#[derive(Parser)]
struct Options {
    /// How often each pair is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A tenth of the operations
    #[arg(long)]
    quick: bool,
    /// Only loads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where plots go
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Another build of Larder
    #[arg(long, default_value = env!("CARGO_BIN_EXE_larder"))]
    larder: String,
    /// Given by cargo; means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
struct System {
    name: &'static str,
    subject: Process,
    /// The server behind, if the subject is not the server.
    behind: Option<Process>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The server itself.
    Direct,
    /// Larder, answering from L1.
    Hits,
    /// Larder with L1 off, or another proxy.
    Forwards,
    /// Larder, keeping what it reads, whether or not it is read again.
    Fills,
    /// Larder as it comes.
    Adapts,
}

/// One line of the table for each system that it is for.
struct Case {
    name: &'static str,
    load: Load,
    keys: Keys,
    systems: &'static [Kind],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Random ones, by redis-benchmark.
    Random,
    /// Random ones, in requests that are ready ([`saturate`]).
    Prepared,
    /// Each once.
    Once,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let available = std::thread::available_parallelism()?.get();
    // The last core: the first is where many machines handle their interrupts.
    let cores = (available > 1).then_some(Cores { subject: available - 1, others: 0 });
    if let Some(cores) = cores {
        stand::pin(std::process::id(), cores.others)?;
    }
    let cases: Vec<Case> = cases(options.quick).into_iter().filter(|case| case.name.contains(&options.only)).collect();
    let mut report = Report::default();
    for round in 1..=options.rounds {
        for value_bytes in [SMALL_BYTES, LARGE_BYTES] {
            let of_size: Vec<&Case> = cases.iter().filter(|case| case.load.value_bytes == value_bytes).collect();
            if of_size.is_empty() {
                continue;
            }
            for system in systems(&options.larder, cores, value_bytes, &of_size)? {
                let system = system?;
                for case in of_size.iter().filter(|case| case.systems.contains(&system.kind)) {
                    let sample = measure(&system, case, cores)?;
                    eprintln!("round {round}: {}: {}: {:.3} us", case.name, system.name, sample.subject_us);
                    report.add(Row { case: case.name, system: system.name }, sample);
                }
            }
        }
        if "latency".contains(&options.only) {
            latencies(&options, cores, &mut report)?;
        }
        if "threads".contains(&options.only) {
            two_threads(&options, cores, &mut report)?;
        }
    }
    print!("{}", report.table());
    std::fs::create_dir_all("target/peers")?;
    std::fs::write("target/peers/table.md", report.table())?;
    std::fs::write("target/peers/result.json", report.json())?;
    if let Some(directory) = options.plots {
        plots::draw(&report, &directory)?;
    }
    Ok(())
}

fn cases(quick: bool) -> Vec<Case> {
    let scale = if quick { 10 } else { 1 };
    let case = |name, verb, value_bytes, pipeline, keys, systems| {
        let operations = match (pipeline, verb) {
            (1, Verb::MgetTen) => 200_000,
            (1, _) => 300_000,
            (_, Verb::MgetTen) => 500_000,
            _ => 2_000_000,
        } / scale;
        // There are only so many keys to be read once, and none twice.
        let operations = match (keys, pipeline) {
            (Keys::Random | Keys::Prepared, _) => operations,
            (Keys::Once, 1) => operations.min(ONCE_AT_PIPELINE_1),
            (Keys::Once, _) => operations.min(ONCE_KEYS - ONCE_AT_PIPELINE_1),
        };
        let load = Load { verb, keys: KEYS, value_bytes, pipeline, operations };
        Case { name, load, keys, systems }
    };
    use Keys::{Once, Prepared, Random};
    use Kind::{Adapts, Direct, Fills, Forwards, Hits};
    vec![
        case("GET 64 B, pipeline 1", Verb::Get, SMALL_BYTES, 1, Random, &[Direct, Hits, Forwards]),
        case("GET 64 B, pipeline 16", Verb::Get, SMALL_BYTES, 16, Random, &[Direct, Hits, Forwards]),
        case("GET 1 KB, pipeline 1", Verb::Get, LARGE_BYTES, 1, Random, &[Direct, Hits]),
        case("GET 1 KB, pipeline 16", Verb::Get, LARGE_BYTES, 16, Random, &[Direct, Hits]),
        case("MGET 10 x 64 B, pipeline 1", Verb::MgetTen, SMALL_BYTES, 1, Random, &[Direct, Hits]),
        case("MGET 10 x 64 B, pipeline 16", Verb::MgetTen, SMALL_BYTES, 16, Random, &[Direct, Hits]),
        case("SET 64 B, pipeline 1", Verb::Set, SMALL_BYTES, 1, Random, &[Direct, Forwards]),
        case("SET 64 B, pipeline 16", Verb::Set, SMALL_BYTES, 16, Random, &[Direct, Forwards]),
        case("GET 64 B, pipeline 1, never idle", Verb::Get, SMALL_BYTES, 1, Prepared, &[Direct, Hits, Forwards]),
        case("GET 64 B, pipeline 16, never idle", Verb::Get, SMALL_BYTES, 16, Prepared, &[Direct, Hits, Forwards]),
        case("GET 1 KB, pipeline 16, never idle", Verb::Get, LARGE_BYTES, 16, Prepared, &[Direct, Hits]),
        case("MGET 10 x 64 B, pipeline 16, never idle", Verb::MgetTen, SMALL_BYTES, 16, Prepared, &[Direct, Hits]),
        case("SET 64 B, pipeline 16, never idle", Verb::Set, SMALL_BYTES, 16, Prepared, &[Direct, Forwards]),
        case("each key once, pipeline 1", Verb::Get, SMALL_BYTES, 1, Once, &[Forwards, Fills, Adapts]),
        case("each key once, pipeline 16", Verb::Get, SMALL_BYTES, 16, Once, &[Forwards, Fills, Adapts]),
    ]
}

/// Keys that there are for the loads that read each once.
const ONCE_KEYS: u64 = 1_000_000;
/// The first of them are for the load at pipeline 1, which is measured first, the others for the one at pipeline 16.
const ONCE_AT_PIPELINE_1: u64 = 300_000;

type Started = io::Result<System>;

/// Starts one system after the other, as they are taken: each has its core for itself.
fn systems<'a>(
    larder: &'a str,
    cores: Option<Cores>,
    value_bytes: usize,
    cases: &[&Case],
) -> io::Result<impl Iterator<Item = Started> + 'a> {
    let wants_once = cases.iter().any(|case| case.keys == Keys::Once);
    let keys = if wants_once { ONCE_KEYS } else { KEYS };
    let mut plans: Vec<(&'static str, Kind)> = vec![
        ("redis-server", Kind::Direct),
        ("larder, from L1", Kind::Hits),
        ("larder, forwarding", Kind::Forwards),
        ("larder, filling", Kind::Fills),
        ("larder", Kind::Adapts),
    ];
    plans.extend(
        ["nutcracker", "predixy"].into_iter().filter(|name| is_installed(name)).map(|name| (name, Kind::Forwards)),
    );
    plans.retain(|(_, kind)| cases.iter().any(|case| case.systems.contains(kind)));
    Ok(plans.into_iter().map(move |(name, kind)| {
        if kind == Kind::Direct {
            let subject = redis(cores.map(|c| c.subject))?;
            load::populate(subject.address, KEYS, value_bytes)?;
            return Ok(System { name, subject, behind: None, kind });
        }
        let behind = redis(cores.map(|c| c.others))?;
        load::populate(behind.address, keys, value_bytes)?;
        let core = cores.map(|c| c.subject);
        let subject = match (name, kind) {
            ("nutcracker", _) => nutcracker(behind.address, core)?,
            ("predixy", _) => predixy(behind.address, core)?,
            (_, Kind::Forwards) => larder_before(larder, behind.address, core, &["--set", "l1.enabled=false"])?,
            (_, Kind::Fills) => larder_before(larder, behind.address, core, &["--set", "l1.admission='always'"])?,
            _ => larder_before(larder, behind.address, core, &[])?,
        };
        if kind == Kind::Hits {
            // Twice: what is asked for once only need not be kept.
            load::warm(subject.address, KEYS, value_bytes)?;
            load::warm(subject.address, KEYS, value_bytes)?;
        }
        Ok(System { name, subject, behind: Some(behind), kind })
    }))
}

fn measure(system: &System, case: &Case, cores: Option<Cores>) -> io::Result<Sample> {
    let (before, behind_before) = (system.subject.times()?, behind_times(system)?);
    let per_second = match case.keys {
        Keys::Random => load::random_keys(system.subject.address, case.load, cores.map(|c| c.others))?,
        Keys::Prepared => saturate::run(&[system.subject.address], case.load)?,
        // The one at pipeline 16 reads what the one at pipeline 1 has not.
        Keys::Once if case.load.pipeline == 1 => load::read_once(system.subject.address, case.load, 0)?,
        Keys::Once => load::read_once(system.subject.address, case.load, ONCE_AT_PIPELINE_1)?,
    };
    // An empty sum is -0.
    let micros = |seconds: Vec<f64>| seconds.iter().fold(0.0, |a, b| a + b) * 1e6 / case.load.operations as f64;
    let subject_us = micros(stand::spent(&before, &system.subject.times()?));
    let behind_us = micros(stand::spent(&behind_before, &behind_times(system)?));
    Ok(Sample { subject_us, behind_us, per_second })
}

fn behind_times(system: &System) -> io::Result<Vec<stand::ThreadTime>> {
    system.behind.as_ref().map_or(Ok(Vec::new()), Process::times)
}

/// Half of what redis-server can do is asked of it, and of L1. A forward costs more than an answer, so of Larder forwarding half
/// of what *it* can do is asked, and for comparison the same of redis-server once more. All of them run on one core, and are
/// asked in turn, a second each: what else the machine does meets all alike.
fn latencies(options: &Options, cores: Option<Cores>, report: &mut Report) -> io::Result<()> {
    let core = cores.map(|c| c.subject);
    let (direct, behind) = (redis(core)?, redis(cores.map(|c| c.others))?);
    load::populate(direct.address, KEYS, SMALL_BYTES)?;
    load::populate(behind.address, KEYS, SMALL_BYTES)?;
    let hits = larder_before(&options.larder, behind.address, core, &[])?;
    load::warm(hits.address, KEYS, SMALL_BYTES)?;
    load::warm(hits.address, KEYS, SMALL_BYTES)?;
    let forwards = larder_before(&options.larder, behind.address, core, &["--set", "l1.enabled=false"])?;
    let probe = Load { verb: Verb::Get, keys: KEYS, value_bytes: SMALL_BYTES, pipeline: 1, operations: 100_000 };
    let half = |address| Ok::<_, io::Error>(load::random_keys(address, probe, cores.map(|c| c.others))? / 2.0);
    let (rate, forward_rate) = (half(direct.address)?, half(forwards.address)?);
    let asked = [
        ("redis-server", &direct, rate),
        ("larder, from L1", &hits, rate),
        ("larder, forwarding", &forwards, forward_rate),
        ("redis-server, at the rate of forwarding", &direct, forward_rate),
    ];
    for _ in 0..if options.quick { 1 } else { LATENCY_TURNS } {
        for (system, process, per_second) in asked {
            let pace = Pace { keys: KEYS, value_bytes: SMALL_BYTES, per_second, seconds: 1.0 };
            let histogram = latency::measure(process.address, pace)?;
            let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
            let sample = Latency { p50_us: us(0.5), p99_us: us(0.99), p999_us: us(0.999), per_second };
            eprintln!("latency: {system}: p50 {:.0} us, p99 {:.0} us", sample.p50_us, sample.p99_us);
            report.add_latency(system, sample);
        }
    }
    Ok(())
}

/// What two worker threads do for one. Each worker has a core, and shares it with a generator of its own, so that a core has the
/// same to do whether there is one or two of them; what the generators use does not count. With two cores, half of what a
/// generator sends crosses from one to the other, which costs the kernel more than what stays: how much, two processes of one worker
/// each show, which have nothing in common.
fn two_threads(options: &Options, cores: Option<Cores>, report: &mut Report) -> io::Result<()> {
    let Some(Cores { subject, others }) = cores else { return Ok(()) };
    let behind = redis(None)?;
    load::populate(behind.address, KEYS, SMALL_BYTES)?;
    for _ in 0..if options.quick { 1 } else { WORKERS_TURNS } {
        for (name, processes) in [
            (ONE_WORKER, &[&[subject][..]][..]),
            (TWO_WORKERS, &[&[subject, others]]),
            (TWO_PROCESSES, &[&[subject], &[others]]),
        ] {
            let sample = workers_on(processes, options, behind.address)?;
            eprintln!("workers: {name}: {:.3} us, the busiest {:.3} us", sample.cpu_us, sample.busiest_us);
            report.add_workers(name, sample);
        }
    }
    Ok(())
}

/// Measures processes with a worker on each of these cores, and a generator beside each of them.
fn workers_on(processes: &[&[usize]], options: &Options, behind: SocketAddr) -> io::Result<Workers> {
    let operations = if options.quick { 250_000 } else { 3_000_000 };
    let load = Load { verb: Verb::Get, keys: KEYS, value_bytes: SMALL_BYTES, pipeline: 16, operations };
    let mut larders = Vec::new();
    for cores in processes {
        let larder = larder_with(&options.larder, behind, None, &["--set", &format!("threads={}", cores.len())])?;
        larder.pin_threads("larder-", cores)?;
        load::warm(larder.address, KEYS, SMALL_BYTES)?;
        load::warm(larder.address, KEYS, SMALL_BYTES)?;
        larders.push(larder);
    }
    let addresses: Vec<SocketAddr> = larders.iter().map(|larder| larder.address).collect();
    let generate = |core: usize| {
        stand::pin(stand::own_thread()?, core)?;
        saturate::run(&addresses, load)
    };
    let before: Vec<_> = larders.iter().map(Process::times).collect::<io::Result<_>>()?;
    let began = Instant::now();
    let cores = processes.concat();
    std::thread::scope(|scope| {
        let generators: Vec<_> = cores.iter().map(|core| scope.spawn(|| generate(*core))).collect();
        let mut ended = generators.into_iter().map(|generator| generator.join());
        ended.try_for_each(|rate| rate.map_err(|_| io::Error::other("a generator failed"))?.map(drop))
    })?;
    let operations = (load.operations * cores.len() as u64) as f64;
    let per_second = operations / began.elapsed().as_secs_f64();
    let mut spent = Vec::new();
    for (larder, before) in larders.iter().zip(&before) {
        spent.extend(stand::spent(before, &larder.times()?));
    }
    let micros = |seconds: f64| seconds * 1e6 / operations;
    let busiest_us = micros(spent.iter().copied().fold(0.0, f64::max));
    Ok(Workers { cpu_us: micros(spent.iter().sum()), busiest_us, per_second })
}

fn redis(core: Option<usize>) -> io::Result<Process> {
    start("redis-server", core, |port, directory| {
        let flags = ["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"];
        flags.iter().map(ToString::to_string).chain([directory.display().to_string()]).collect()
    })
}

/// With one thread, to be compared with servers that have one.
fn larder_before(larder: &str, upstream: SocketAddr, core: Option<usize>, flags: &[&str]) -> io::Result<Process> {
    let flags: Vec<&str> = ["--set", "threads=1"].iter().chain(flags).copied().collect();
    larder_with(larder, upstream, core, &flags)
}

fn larder_with(larder: &str, upstream: SocketAddr, core: Option<usize>, flags: &[&str]) -> io::Result<Process> {
    start(larder, core, |port, _| {
        let listen = format!("127.0.0.1:{port}");
        let upstream = format!("redis://{upstream}");
        ["--listen", &listen, "--upstream", &upstream].iter().chain(flags).map(ToString::to_string).collect()
    })
}

fn nutcracker(upstream: SocketAddr, core: Option<usize>) -> io::Result<Process> {
    start("nutcracker", core, |port, directory| {
        let configuration = format!(
            "peers:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  \
             servers:\n   - {upstream}:1\n"
        );
        write_configuration(directory, &configuration)
    })
}

fn predixy(upstream: SocketAddr, core: Option<usize>) -> io::Result<Process> {
    start("predixy", core, |port, directory| {
        let configuration = format!(
            "Bind 127.0.0.1:{port}\nWorkerThreads 1\nStandaloneServerPool {{\n  Databases 1\n  Hash crc16\n  \
             Distribution modula\n  Group peers {{\n    + {upstream}\n  }}\n}}\n"
        );
        write_configuration(directory, &configuration).split_off(1)
    })
}

/// Returns the arguments that name the file. A configuration that cannot be written shows when the peer does not start.
fn write_configuration(directory: &std::path::Path, text: &str) -> Vec<String> {
    let file = directory.join("configuration");
    if let Err(error) = std::fs::write(&file, text) {
        eprintln!("writing {}: {error}", file.display());
    }
    vec!["-c".to_owned(), file.display().to_string()]
}
