//! The state of a program, handed on to the one that goes on with its service.
//!
//! An upgrade passes the memory that the state lies in, and a page that says what lies there. The next program makes its state as any
//! program does; what has the name and the shape of something that was handed on is that, and so is shared with the workers of the
//! program before for as long as these live.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::Error;
use crate::sys::region::Region;
use crate::sys::table;
use crate::{info, warn};

/// Names, in the environment of a program that takes over, the descriptor of the page that tells it what is handed on.
pub const TAKE_OVER: &str = "PHALANX_TAKE_OVER";
/// A page larger than this is none.
const MOST: u64 = 64 << 20;
/// Of what lies in the memory. It changes with every change that a program of the version before would misread.
const LAYOUT: u32 = 1;

/// What this program has.
static HOLDINGS: LazyLock<Mutex<Holdings>> = LazyLock::new(|| {
    let Estate { plots: handed_on, .. } = handed_on().unwrap_or_default();
    Mutex::new(Holdings { handed_on, ..Holdings::default() })
});

/// All of a program's state, as one program tells the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Estate {
    /// Whose program the next is: nobody else's, though it may find the page. 0: not told.
    process: u32,
    #[serde(deserialize_with = "sound")]
    plots: Vec<Plot>,
}

/// What concerns this module of the page of an upgrade.
#[derive(Deserialize)]
struct Page {
    shared: Estate,
}

/// Without what is no number of anybody's memory, or is another's already: it would be closed under whoever has it.
fn sound<'de, D: Deserializer<'de>>(told: D) -> Result<Vec<Plot>, D::Error> {
    let mut plots = Vec::<Plot>::deserialize(told)?;
    let mut numbers = HashSet::from([0, 1, 2]);
    plots.retain(|plot| plot.memory > 0 && numbers.insert(plot.memory));
    Ok(plots)
}

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
    /// Names of those of them that began empty.
    fresh: Vec<String>,
}

impl Estate {
    /// The descriptors of the memory.
    pub fn memory(&self) -> impl Iterator<Item = RawFd> {
        self.plots.iter().map(|plot| plot.memory)
    }

    /// Whether it was told this very process.
    pub fn is_for_this_process(&self) -> bool {
        self.process == 0 || self.process == std::process::id()
    }
}

/// Memory of that name for what `deed` tells: that of the program before, and what it tells of it, if that fits; or fresh, all zero.
pub(super) fn take<D: Deed>(name: &str, len: usize, deed: D) -> Result<(Region, D), Error> {
    holdings().take(name, len, deed)
}

/// Whether the program before handed on memory of that name that nobody has taken.
pub(super) fn is_handed_on(name: &str) -> bool {
    holdings().handed_on.iter().any(|plot| plot.name == name)
}

/// One more of what is told, as a list, of this program's memory of that name.
pub(super) fn add(name: &str, item: &impl Serialize) {
    let mut holdings = holdings();
    let deed = holdings.own.iter_mut().find(|plot| plot.name == name).map(|plot| &mut plot.deed);
    if let (Some(serde_json::Value::Array(items)), Ok(item)) = (deed, serde_json::to_value(item)) {
        items.push(item);
    }
}

/// Everything that this program has or was handed.
pub fn estate() -> Estate {
    let holdings = holdings();
    let plots = holdings.own.iter().chain(&holdings.handed_on).cloned().collect();
    Estate { process: std::process::id(), plots }
}

/// The program before cannot be returned to any more: what it alone had is forgotten.
pub fn forget_the_rest() {
    for plot in std::mem::take(&mut holdings().handed_on) {
        info!("shared state: the {} of the program before is forgotten", plot.name);
        table::close(plot.memory);
    }
}

/// Says what has begun empty though the program before had something of its name.
pub fn tell_what_is_fresh() {
    let holdings = holdings();
    for name in holdings.fresh.iter().filter(|name| holdings.handed_on.iter().any(|plot| plot.name == **name)) {
        warn!("shared state: the {name} has another shape than in the program before, and begins empty");
    }
}

fn holdings() -> MutexGuard<'static, Holdings> {
    HOLDINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None where nothing is handed on, or nothing that could be read: who takes over the service says what is wrong with the page.
fn handed_on() -> Option<Estate> {
    let number: RawFd = std::env::var(TAKE_OVER).ok()?.parse().ok().filter(|number| *number > 2)?;
    let page = File::from(table::borrow(number).try_clone_to_owned().ok()?);
    let len = page.metadata().ok()?.len().min(MOST) as usize;
    let mut bytes = vec![0; len];
    // Where it stands in the file is its reader's, who comes later.
    page.read_exact_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(&bytes).ok().map(|Page { shared }| shared).filter(Estate::is_for_this_process)
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
        self.fresh.push(name.to_owned());
        Ok((region, deed))
    }
}

impl Plot {
    /// The memory, and what is told of it, if it serves for what is wanted.
    fn open<D: Deed>(&self, len: usize, wanted: &D) -> Option<(Region, D)> {
        let told = D::deserialize(&self.deed).ok().filter(|told| told.serves_for(wanted))?;
        let same = self.layout == LAYOUT && self.len == len;
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
        found(json!({"of": "more", "shared": {"process": 1, "plots": plots}}))
    }

    fn found(page: serde_json::Value) -> Holdings {
        let Page { shared } = serde_json::from_value(page).unwrap();
        assert!(!shared.is_for_this_process());
        Holdings { handed_on: shared.plots, ..Holdings::default() }
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
            let mut page = json!({"shared": {"process": 1, "plots": &first.own}});
            page["shared"]["plots"][0][field] = value;
            let mut second = found(page);
            assert_eq!(second.take("a", 4096, size(1, "")).unwrap().1, size(1, ""));
        }
    }

    #[test]
    fn what_is_no_page_hands_nothing_on() {
        for page in ["", "7", "{}", r#"{"shared": null}"#, r#"{"shared": 7}"#, r#"{"shared": {"process": 7}}"#] {
            assert!(serde_json::from_str::<Page>(page).is_err(), "{page}");
        }
        let plot = |memory: i32| json!({"name": "a", "layout": 1, "len": 8, "memory": memory, "deed": null});
        let all = [-1, 0, 1, 2, 7, 8, 7].map(plot);
        let Page { shared } = serde_json::from_value(json!({"shared": {"process": 7, "plots": all}})).unwrap();
        assert_eq!(shared.memory().collect::<Vec<_>>(), [7, 8]);
    }
}
