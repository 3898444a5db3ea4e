//! Figures that all workers add to, in shared memory: counters, gauges, histograms. Each is a few words that are changed by one
//! instruction each, so a death loses nothing that was counted.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::heritage::{self, Deed};
use super::{Error, check_in_time};
use crate::sys::region::Region;

/// Words for figures, in one piece of memory.
const WORDS: usize = 64 * 1024;
/// Pieces. Those that upgrades have left behind lie there too.
const MOST_GROUNDS: usize = 16;
/// Bounds of a histogram.
const MOST_BOUNDS: usize = 64;
/// What a value adds to the sum of its histogram at most.
const MOST_OBSERVED: f64 = 1e12;

/// What there is, by name; made before the first worker, so it is the same in all processes.
static FIGURES: Mutex<Vec<Figure>> = Mutex::new(Vec::new());
/// Where they are.
static GROUNDS: Mutex<Vec<Ground>> = Mutex::new(Vec::new());

struct Ground {
    region: Region,
    plan: Plan,
}

/// Which words are whose. A figure that the next program does not have keeps its words: workers of the program before may write them,
/// and the one after may have it again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Plan(Vec<Place>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    of: Of,
    at: usize,
}

/// Whose words: they mean the same for whoever is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Of {
    name: String,
    kind: String,
    /// Of a histogram, as bits.
    bounds: Vec<u64>,
}

impl Of {
    fn words(&self) -> usize {
        if self.bounds.is_empty() { 1 } else { self.bounds.len() + 2 }
    }
}

impl Place {
    fn end(&self) -> usize {
        self.at.saturating_add(self.of.words())
    }
}

impl Plan {
    /// From here on words are nobody's.
    fn free(&self) -> usize {
        self.0.iter().map(Place::end).max().unwrap_or(0)
    }
}

impl Deed for Plan {
    fn serves_for(&self, _: &Plan) -> bool {
        self.free() <= WORDS
    }
}

#[derive(Debug, Clone)]
struct Figure {
    name: String,
    help: String,
    /// As Prometheus calls it.
    kind_name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Something that only grows.
#[derive(Debug, Clone, Copy)]
pub struct Counter(&'static AtomicU64);

/// Something that grows and shrinks.
#[derive(Debug, Clone, Copy)]
pub struct Gauge(&'static AtomicU64);

/// How values are spread: how many were at most each of some bounds.
#[derive(Debug, Clone, Copy)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, one for all that is beyond, and the sum, in millionths.
    words: &'static [AtomicU64],
}

impl Counter {
    /// One of that name, `[a-zA-Z_:][a-zA-Z0-9_:]*` as Prometheus has them, ending in `_total` by custom; `help` says what it counts.
    /// Make it before the server starts.
    ///
    /// # Errors
    /// This is a worker already, or the name is none or is taken, or there is no room for more.
    pub fn new(name: &str, help: &str) -> Result<Counter, Error> {
        enter((name, help), ("counter", Kind::Counter), &[], |words| Counter(&words[0]))
    }

    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts so many.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many all workers have counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// As [`Counter::new`].
    ///
    /// # Errors
    /// As there.
    pub fn new(name: &str, help: &str) -> Result<Gauge, Error> {
        enter((name, help), ("gauge", Kind::Gauge), &[], |words| Gauge(&words[0]))
    }

    /// It is this from now on, for all workers.
    pub fn set(&self, value: i64) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    /// It is so much more, or less. What a worker has added stays when it dies: count what comes and goes with a worker otherwise.
    pub fn add(&self, value: i64) {
        self.0.fetch_add(value as u64, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed) as i64
    }
}

impl Histogram {
    /// As [`Counter::new`]; `bounds` rise, and there are 1 to 64.
    ///
    /// # Errors
    /// As there, and that the bounds are none (`Error::Size`).
    pub fn new(name: &str, help: &str, bounds: &[f64]) -> Result<Histogram, Error> {
        let rise = bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds.iter().all(|bound| bound.is_finite());
        if bounds.is_empty() || bounds.len() > MOST_BOUNDS || !rise {
            return Err(Error::Size(format!("the bounds of the histogram {name}: 1 to {MOST_BOUNDS} that rise")));
        }
        let make = |words| Histogram { bounds: Box::leak(bounds.into()), words };
        enter((name, help), ("histogram", Kind::Histogram), bounds, make)
    }

    /// Counts a value. The sum counts in millionths; values that are no numbers, or below zero, count as zero there, and what is above a
    /// million millions, as that much.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.words[bucket].fetch_add(1, Ordering::Relaxed);
        self.words[self.bounds.len() + 1].fetch_add((value.clamp(0.0, MOST_OBSERVED) * 1e6) as u64, Ordering::Relaxed);
    }

    /// How many values all workers have counted.
    pub fn count(&self) -> u64 {
        self.words[..=self.bounds.len()].iter().map(|word| word.load(Ordering::Relaxed)).sum()
    }

    /// What they come to together.
    pub fn sum(&self) -> f64 {
        self.words[self.bounds.len() + 1].load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// Takes a figure down: how it is called, what kind it is of, and its bounds if it has some.
fn enter<F: Copy>(
    (name, help): (&str, &str),
    (kind_name, kind): (&'static str, fn(F) -> Kind),
    bounds: &[f64],
    make: impl FnOnce(&'static [AtomicU64]) -> F,
) -> Result<F, Error> {
    check_in_time()?;
    let letter =
        |at: usize, byte: u8| byte.is_ascii_alphabetic() || b"_:".contains(&byte) || (at > 0 && byte.is_ascii_digit());
    if name.is_empty() || !name.bytes().enumerate().all(|(at, byte)| letter(at, byte)) {
        return Err(Error::Name(format!("{name:?} is no name of a figure: letters, digits and underscores")));
    }
    let mut figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    if figures.iter().any(|figure| figure.name == name) {
        return Err(Error::Name(format!("there is a figure called {name} already")));
    }
    let bounds = bounds.iter().map(|bound| bound.to_bits()).collect();
    let made = make(place(Of { name: name.to_owned(), kind: kind_name.to_owned(), bounds })?);
    let help = help.replace(['\\', '\n'], " ");
    figures.push(Figure { name: name.to_owned(), help, kind_name, kind: kind(made) });
    Ok(made)
}

/// The words of a figure: those that it had in the program before, or some that nobody has had.
fn place(of: Of) -> Result<&'static [AtomicU64], Error> {
    let mut grounds = GROUNDS.lock().unwrap_or_else(PoisonError::into_inner);
    while heritage::is_handed_on(&Ground::name(grounds.len())) {
        let next = Ground::take(grounds.len())?;
        grounds.push(next);
    }
    let same = |ground: &Ground| Some((ground.region, ground.plan.0.iter().find(|place| place.of == of)?.at));
    if let Some((region, at)) = grounds.iter().find_map(same) {
        return Ok(region.words(at * 8, of.words()));
    }
    if grounds.last().is_none_or(|last| last.plan.free() + of.words() > WORDS) {
        if grounds.len() == MOST_GROUNDS || of.words() > WORDS {
            return Err(Error::Size(format!("figures of a program take at most {} words", WORDS * MOST_GROUNDS)));
        }
        let next = Ground::take(grounds.len())?;
        grounds.push(next);
    }
    let number = grounds.len() - 1;
    Ok(grounds[number].give(number, of))
}

impl Ground {
    fn name(number: usize) -> String {
        if number == 0 { "figures".to_owned() } else { format!("figures {}", number + 1) }
    }

    fn take(number: usize) -> Result<Ground, Error> {
        let (region, plan) = heritage::take(&Ground::name(number), WORDS * 8, Plan::default())?;
        Ok(Ground { region, plan })
    }

    /// Words that nobody has.
    fn give(&mut self, number: usize, of: Of) -> &'static [AtomicU64] {
        let place = Place { at: self.plan.free(), of };
        let words = self.region.words(place.at * 8, place.of.words());
        heritage::add(&Ground::name(number), &place);
        self.plan.0.push(place);
        // A program that was returned from may have had them.
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        words
    }
}

/// All figures with what they are now, in the text format of Prometheus (version 0.0.4). `prefix` stands before each name.
pub fn exposition(prefix: &str) -> String {
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    for Figure { name, help, kind_name, kind } in figures.iter() {
        // A String takes everything.
        let _ = writeln!(text, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind_name}");
        let _ = match kind {
            Kind::Counter(counter) => writeln!(text, "{prefix}{name} {}", counter.get()),
            Kind::Gauge(gauge) => writeln!(text, "{prefix}{name} {}", gauge.get()),
            Kind::Histogram(histogram) => write_histogram(&mut text, &format!("{prefix}{name}"), histogram),
        };
    }
    text
}

fn write_histogram(text: &mut String, name: &str, histogram: &Histogram) -> std::fmt::Result {
    let mut count = 0;
    for (bound, word) in histogram.bounds.iter().zip(histogram.words) {
        count += word.load(Ordering::Relaxed);
        writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}")?;
    }
    count += histogram.words[histogram.bounds.len()].load(Ordering::Relaxed);
    writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}", histogram.sum())
}

/// Names and values of counters and gauges, and of histograms how many values and their sum, for who has no use for more.
pub fn values() -> Vec<(String, f64)> {
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut values = Vec::new();
    for Figure { name, kind, .. } in figures.iter() {
        match kind {
            Kind::Counter(counter) => values.push((name.clone(), counter.get() as f64)),
            Kind::Gauge(gauge) => values.push((name.clone(), gauge.get() as f64)),
            Kind::Histogram(histogram) => {
                values.push((format!("{name}_count"), histogram.count() as f64));
                values.push((format!("{name}_sum"), histogram.sum()));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_gets_more_and_each_keeps_its_own() {
        let of = |name: &str, words: usize| Of {
            name: name.to_owned(),
            kind: "test".to_owned(),
            bounds: vec![0; words.saturating_sub(2)],
        };
        let names = ["a", "b", "c"];
        let places = names.map(|name| place(of(name, WORDS)).unwrap());
        places[1][7].store(7, Ordering::Relaxed);
        for (name, words) in names.into_iter().zip(places) {
            assert!(std::ptr::eq(place(of(name, WORDS)).unwrap(), words));
        }
        assert_eq!((places[0][7].load(Ordering::Relaxed), places[1][7].load(Ordering::Relaxed)), (0, 7));
        assert!(!std::ptr::eq(place(of("a", 1)).unwrap(), place(of("d", 1)).unwrap()));
        assert!(matches!(place(of("e", WORDS + 1)), Err(Error::Size(_))));
    }

    #[test]
    fn what_is_planned_beyond_the_memory_is_no_plan() {
        let plan = |at| {
            let of = Of { name: "a".to_owned(), kind: "counter".to_owned(), bounds: Vec::new() };
            Plan(vec![Place { of: of.clone(), at }, Place { of, at: 0 }])
        };
        for (at, serves) in [(0, true), (WORDS - 1, true), (WORDS, false), (usize::MAX, false)] {
            assert_eq!(plan(at).serves_for(&Plan::default()), serves, "{at}");
        }
    }

    #[test]
    fn figures_are_told_as_prometheus_reads_them() {
        let hits = Counter::new("test_hits_total", "how often").unwrap();
        let open = Gauge::new("test_open", "how many").unwrap();
        let took = Histogram::new("test_took_seconds", "how long", &[0.1, 1.0]).unwrap();
        hits.increment();
        hits.add(2);
        open.set(5);
        open.add(-7);
        [0.05, 0.1, 0.5, 3.0, f64::NAN].iter().for_each(|value| took.observe(*value));
        let text = exposition("app_");
        let expected = "# HELP app_test_hits_total how often\n# TYPE app_test_hits_total counter\napp_test_hits_total 3\n\
            # HELP app_test_open how many\n# TYPE app_test_open gauge\napp_test_open -2\n\
            # HELP app_test_took_seconds how long\n# TYPE app_test_took_seconds histogram\n\
            app_test_took_seconds_bucket{le=\"0.1\"} 2\napp_test_took_seconds_bucket{le=\"1\"} 3\n\
            app_test_took_seconds_bucket{le=\"+Inf\"} 5\napp_test_took_seconds_sum 3.65\napp_test_took_seconds_count 5\n";
        assert_eq!(text, expected);
        assert!(matches!(Counter::new("test_hits_total", ""), Err(Error::Name(_))));
        assert!(matches!(Counter::new("9lives", ""), Err(Error::Name(_))));
        assert!(matches!(Histogram::new("h", "", &[1.0, 1.0]), Err(Error::Size(_))));
        assert!(values().contains(&("test_took_seconds_count".to_owned(), 5.0)));
    }
}
