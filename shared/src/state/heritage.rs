//! The state of a program, handed on to the one that goes on with its service.
//!
//! An upgrade passes the memory that the state lies in, and a page that says what lies there. The next program makes its state as any
//! program does; what has the name and the shape of something that was handed on is that, and so is shared with the workers of the
//! program before for as long as these live.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::sys::region::Region;
use crate::sys::table;
use crate::{info, warn};

/// Names, in the environment of a program that takes over, the descriptor of the page that tells it what is handed on.
pub const TAKE_OVER: &str = "PHALANX_TAKE_OVER";
/// Where the state stands on that page.
const FIELD: &str = "shared";
/// A page larger than this is none.
const MOST: u64 = 64 << 20;
/// Of what lies in the memory. It changes with every change that a program of the version before would misread.
const LAYOUT: u32 = 1;

/// What a program has.
static HOLDINGS: Mutex<Option<Holdings>> = Mutex::new(None);

/// All of a program's state, as one program tells the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Estate(Vec<Plot>);

/// Some memory, and what lies there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Plot {
    name: String,
    layout: u32,
    /// In bytes.
    len: usize,
    memory: RawFd,
    deed: serde_json::Value,
}

/// What is told of some memory beside its name and length.
pub(super) trait Deed: Serialize + DeserializeOwned {
    /// Whether what lies there by `self` can be taken for what is wanted.
    fn serves_for(&self, wanted: &Self) -> bool;
}

#[derive(Debug, Default)]
struct Holdings {
    /// Of the program before, not taken up by this one.
    handed_on: Vec<Plot>,
    own: Vec<Plot>,
}

impl Estate {
    /// The descriptors of the memory.
    pub fn memory(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|plot| plot.memory)
    }
}

/// Memory of that name for what `deed` tells: that of the program before, and what it tells of it, if that fits; or fresh, all zero.
pub(super) fn take<D: Deed>(name: &str, len: usize, deed: D) -> Result<(Region, D), Error> {
    holdings().take(name, len, deed)
}

/// What is told of this program's memory of that name from now on.
pub(super) fn tell<D: Deed>(name: &str, deed: &D) {
    if let Some(plot) = holdings().own.iter_mut().find(|plot| plot.name == name) {
        plot.deed = serde_json::to_value(deed).unwrap_or_default();
    }
}

/// Everything that this program has or was handed.
pub fn estate() -> Estate {
    let holdings = holdings();
    Estate(holdings.own.iter().chain(&holdings.handed_on).cloned().collect())
}

/// The program before cannot be returned to any more: what it alone had is forgotten.
pub fn forget_the_rest() {
    for plot in std::mem::take(&mut holdings().handed_on) {
        info!("shared state: the {} of the program before is forgotten", plot.name);
        table::close(plot.memory);
    }
}

/// Says of what was handed on that this program makes nothing of it.
pub fn tell_the_rest() {
    let holdings = holdings();
    for Plot { name, .. } in &holdings.handed_on {
        if holdings.own.iter().any(|plot| plot.name == *name) {
            warn!("shared state: the {name} has another shape than in the program before, and begins empty");
        }
    }
}

fn holdings() -> Held {
    let mut held = HOLDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_with(|| Holdings { handed_on: handed_on().unwrap_or_default(), own: Vec::new() });
    Held(held)
}

/// There are some.
struct Held(MutexGuard<'static, Option<Holdings>>);

impl std::ops::Deref for Held {
    type Target = Holdings;

    fn deref(&self) -> &Holdings {
        static NONE: Holdings = Holdings { handed_on: Vec::new(), own: Vec::new() };
        self.0.as_ref().unwrap_or(&NONE)
    }
}

impl std::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Holdings {
        self.0.get_or_insert_default()
    }
}

/// None where nothing is handed on, or nothing that could be read: who takes over the service says what is wrong with the page.
fn handed_on() -> Option<Vec<Plot>> {
    let page: RawFd = std::env::var(TAKE_OVER).ok()?.parse().ok()?;
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{page}")).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    plots(&bytes)
}

fn plots(page: &[u8]) -> Option<Vec<Plot>> {
    let mut page: serde_json::Value = serde_json::from_slice(page).ok()?;
    let Estate(plots) = serde_json::from_value(page.get_mut(FIELD)?.take()).ok()?;
    Some(plots)
}

impl Holdings {
    fn take<D: Deed>(&mut self, name: &str, len: usize, deed: D) -> Result<(Region, D), Error> {
        if self.own.iter().any(|plot| plot.name == name) {
            return Err(Error::Name(format!("there is a {name} already")));
        }
        for (at, plot) in self.handed_on.iter().enumerate().filter(|(_, plot)| plot.name == name) {
            let Some((region, told)) = plot.open(len, &deed) else { continue };
            self.own.push(self.handed_on.remove(at));
            return Ok((region, told));
        }
        let (region, memory) = Region::create(&format!("phalanx: {name}"), len).map_err(Error::Memory)?;
        let page = serde_json::to_value(&deed).map_err(|error| Error::Memory(io::Error::other(error)))?;
        let plot = Plot { name: name.to_owned(), layout: LAYOUT, len, memory: memory.into_raw_fd(), deed: page };
        self.own.push(plot);
        Ok((region, deed))
    }
}

impl Plot {
    /// The memory, and what is told of it, if it serves for what is wanted.
    fn open<D: Deed>(&self, len: usize, wanted: &D) -> Option<(Region, D)> {
        let told = D::deserialize(&self.deed).ok().filter(|told| told.serves_for(wanted))?;
        let same = self.layout == LAYOUT && self.len == len && self.memory > 2;
        let memory = same.then(|| table::borrow(self.memory))?;
        Some((Region::open(&memory, len).ok()?, told))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Size(u32, String);

    impl Deed for Size {
        fn serves_for(&self, wanted: &Size) -> bool {
            self.0 == wanted.0
        }
    }

    fn size(size: u32, more: &str) -> Size {
        Size(size, more.to_owned())
    }

    /// What the next program finds, by way of the page.
    fn successor(of: &Holdings) -> Holdings {
        let plots: Vec<&Plot> = of.own.iter().chain(&of.handed_on).collect();
        let page = json!({"of": "more", FIELD: plots}).to_string();
        Holdings { handed_on: super::plots(page.as_bytes()).unwrap(), own: Vec::new() }
    }

    #[test]
    fn what_has_the_same_name_and_shape_is_the_same() {
        let mut first = Holdings::default();
        let (region, told) = first.take("a", 4096, size(1, "first")).unwrap();
        assert_eq!(told, size(1, "first"));
        region.words(0, 1)[0].store(7, Ordering::Relaxed);
        assert!(matches!(first.take("a", 4096, size(1, "again")), Err(Error::Name(_))));
        let mut second = successor(&first);
        let (same, told) = second.take("a", 4096, size(1, "second")).unwrap();
        assert_eq!((same.words(0, 1)[0].load(Ordering::Relaxed), told), (7, size(1, "first")));
        assert!(second.handed_on.is_empty());
        // Both have it now.
        same.words(0, 1)[0].store(8, Ordering::Relaxed);
        assert_eq!(region.words(0, 1)[0].load(Ordering::Relaxed), 8);
    }

    #[test]
    fn what_does_not_fit_is_left_and_begins_empty() {
        let mut first = Holdings::default();
        first.take("a", 4096, size(1, "first")).unwrap().0.words(0, 1)[0].store(7, Ordering::Relaxed);
        for (name, len, wanted) in [("a", 4096, size(2, "")), ("a", 8192, size(1, "")), ("b", 4096, size(1, ""))] {
            let mut second = successor(&first);
            let (fresh, told) = second.take(name, len, wanted.clone()).unwrap();
            assert_eq!((fresh.words(0, 1)[0].load(Ordering::Relaxed), told), (0, wanted));
            // Who is returned to finds its own.
            let mut third = successor(&second);
            let (same, told) = third.take("a", 4096, size(1, "third")).unwrap();
            assert_eq!((same.words(0, 1)[0].load(Ordering::Relaxed), told), (7, size(1, "first")));
        }
        // Of another layout, or what is no memory.
        for (field, value) in
            [("layout", json!(99)), ("memory", json!(1)), ("memory", json!(987_654)), ("deed", json!("no"))]
        {
            let mut page = json!({FIELD: &first.own});
            page[FIELD][0][field] = value;
            let mut second = Holdings { handed_on: plots(page.to_string().as_bytes()).unwrap(), own: Vec::new() };
            assert_eq!(second.take("a", 4096, size(1, "")).unwrap().1, size(1, ""));
        }
    }

    #[test]
    fn what_is_no_page_hands_nothing_on() {
        for page in ["", "7", "{}", r#"{"shared": null}"#, r#"{"shared": 7}"#, r#"{"shared": [{"name": 7}]}"#] {
            assert_eq!(plots(page.as_bytes()), None, "{page}");
        }
        assert_eq!(plots(br#"{"shared": []}"#), Some(Vec::new()));
    }
}
