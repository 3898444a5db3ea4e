//! A table being read: typed access to its declared keys, and a report of those that are not declared.

use std::path::PathBuf;
use std::time::Duration;

use toml_edit::{Item, TableLike, Value};

use super::bounds::{Bounds, TIMEOUT};
use super::entry::{Choices, Entry};
use super::nearest::nearest;
use super::problem::{Place, Refusal};
use super::source::Source;
use super::units;
use super::written::{Key, Schema, Shape, TABLES};

/// One table of the file, or one that is absent, in which every key is.
///
/// Each reader below reports a value of the wrong kind or out of bounds, and then answers as if the key were absent.
pub(super) struct Table<'a> {
    source: &'a Source<'a>,
    schema: &'static Schema,
    items: Option<&'a dyn TableLike>,
    offset: usize,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// The table `items` that begins at the byte `offset`.
    pub(super) fn new(
        source: &'a Source<'a>,
        schema: &'static Schema,
        items: Option<&'a dyn TableLike>,
        offset: usize,
    ) -> Self {
        Self { source, schema, items, offset, asked: Vec::new() }
    }

    /// Whether the key is written, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.items.is_some_and(|items| items.contains_key(key))
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place {
        self.source.place(self.offset)
    }

    /// Reports a problem with the table as a whole.
    pub(super) fn refuse(&self, text: impl Into<String>, hint: impl Into<String>) {
        self.source.report(self.offset, Refusal::new(text, hint));
    }

    /// Reports a problem with a key, at the key; at the table if the key is not written.
    pub(super) fn refuse_key(&self, key: &str, text: impl Into<String>, hint: impl Into<String>) {
        self.source.report(self.key_offset(key), Refusal::new(text, hint));
    }

    /// The value of the key, of whatever kind.
    pub(super) fn entry(&mut self, name: &'static str) -> Option<Entry<'a>> {
        let (key, item) = self.item(name)?;
        Some(Entry::new(self.source, self.schema.name_of(name), key, item, self.key_offset(name)))
    }

    /// As [`Table::entry`], for a key that must be written.
    pub(super) fn required(&mut self, name: &'static str) -> Option<Entry<'a>> {
        let entry = self.entry(name);
        if entry.is_none() {
            let about = self.declared(name).about;
            let text = format!("{} is missing", self.schema.name_of(name));
            self.refuse(text, format!("add {name} to {}: {about}", self.schema.heading()));
        }
        entry
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.entry(name).and_then(|entry| entry.flag()).unwrap_or(default)
    }

    pub(super) fn number<T: TryFrom<u64>>(&mut self, name: &'static str, default: T, bounds: &Bounds) -> T {
        let number = self.entry(name).and_then(|entry| {
            let number = entry.number()?;
            entry.check(bounds.check(number))
        });
        number.unwrap_or(default)
    }

    /// A number that has no default of its own.
    pub(super) fn optional_number<T: TryFrom<u64>>(&mut self, name: &'static str, bounds: &Bounds) -> Option<T> {
        let entry = self.entry(name)?;
        entry.check(bounds.check(entry.number()?))
    }

    /// A string with a unit, or the number 0.
    pub(super) fn size<T: TryFrom<u64>>(&mut self, name: &'static str, default: T, bounds: &Bounds) -> T {
        let size = self.entry(name).and_then(|entry| {
            let bytes = bytes(&entry)?;
            entry.check(bounds.check(bytes))
        });
        size.unwrap_or(default)
    }

    /// A string with a unit, within the bounds of a timeout.
    pub(super) fn duration(&mut self, name: &'static str, default: Duration) -> Duration {
        self.duration_within(name, default, &TIMEOUT)
    }

    pub(super) fn duration_within(&mut self, name: &'static str, default: Duration, bounds: &Bounds) -> Duration {
        let duration = self.entry(name).and_then(|entry| {
            let text = entry.text("a duration such as \"30s\"")?;
            let duration = entry.check(units::duration(text))?;
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            entry.check(bounds.check(milliseconds)).map(Duration::from_millis)
        });
        duration.unwrap_or(default)
    }

    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, default: T, choices: &Choices<T>) -> T {
        self.entry(name).and_then(|entry| entry.choice(choices)).unwrap_or(default)
    }

    /// One of `words`, which are `what`.
    pub(super) fn word(&mut self, name: &'static str, what: &str, words: &[&str]) -> Option<String> {
        self.entry(name)?.word(what, words)
    }

    /// A path, made absolute.
    pub(super) fn path(&mut self, name: &'static str) -> Option<PathBuf> {
        let entry = self.entry(name)?;
        let written = entry.text("a path")?;
        entry.check(self.source.path(written))
    }

    /// The table below the key, if it is written.
    pub(super) fn optional(&mut self, name: &'static str, schema: &'static Schema) -> Option<Table<'a>> {
        let (_, item) = self.item(name)?;
        match item.as_table_like() {
            Some(items) => Some(Table::new(self.source, schema, Some(items), self.start_of(name, item))),
            None => {
                let entry = self.entry(name)?;
                entry.expect::<()>(None, &format!("a table, {}", schema.heading()));
                None
            }
        }
    }

    /// The table below the key, or an absent one.
    pub(super) fn table(&mut self, name: &'static str, schema: &'static Schema) -> Table<'a> {
        self.optional(name, schema).unwrap_or_else(|| Table::new(self.source, schema, None, self.offset))
    }

    /// The tables of a list, headed or inline; none if the key is absent.
    pub(super) fn tables(&mut self, name: &'static str, schema: &'static Schema) -> Vec<Table<'a>> {
        let Some((_, item)) = self.item(name) else { return Vec::new() };
        let Some(items) = each_table(item) else {
            self.refuse_shape(name, schema);
            return Vec::new();
        };
        let start = self.key_offset(name);
        let tables = items.into_iter();
        tables.map(|(items, offset)| Table::new(self.source, schema, Some(items), offset.unwrap_or(start))).collect()
    }

    /// Ends the reading: reports the keys that are not declared, and those that are planned.
    pub(super) fn finish(self) {
        let unread = self.schema.keys.iter().find(|key| !self.asked.contains(&key.name));
        debug_assert!(unread.is_none(), "{} is declared and not read", unread.map_or("", |key| key.name));
        for (name, _) in self.items.into_iter().flat_map(|items| items.iter()) {
            if let Some(planned) = self.schema.planned(name) {
                self.refuse_key(name, format!("{} is not yet available", planned.what), planned.hint);
            } else if self.schema.key(name).is_none() {
                self.refuse_key(name, self.unknown(name), self.hint_for_unknown(name));
            }
        }
    }

    fn item(&mut self, name: &'static str) -> Option<(&'static Key, &'a Item)> {
        self.asked.push(name);
        let key = self.declared(name);
        Some((key, self.items?.get(name)?))
    }

    fn declared(&self, name: &str) -> &'static Key {
        self.schema.key(name).expect("readers ask for keys that written.rs declares")
    }

    fn key_offset(&self, key: &str) -> usize {
        let span = self.items.and_then(|items| items.key(key)).and_then(|key| key.span());
        span.map_or(self.offset, |span| span.start)
    }

    /// A table built from dotted keys has no place of its own.
    fn start_of(&self, key: &str, item: &Item) -> usize {
        item.span().map_or_else(|| self.key_offset(key), |span| span.start)
    }

    fn refuse_shape(&mut self, name: &'static str, schema: &'static Schema) {
        let heading = schema.heading();
        let found = self.entry(name).map_or("something else", |entry| entry.found());
        let text = format!("{}: expected tables headed {heading}, found {found}", self.schema.name_of(name));
        self.refuse_key(name, text, format!("write {heading} above the keys of each"));
    }

    fn unknown(&self, name: &str) -> String {
        match self.schema.shape {
            Shape::Root => format!("unknown table or key `{name}`"),
            _ => format!("unknown key `{}`", self.schema.name_of(name)),
        }
    }

    fn hint_for_unknown(&self, name: &str) -> String {
        let known = self.schema.keys.iter().map(|key| key.name);
        if let Some(meant) = nearest(name, known.clone()) {
            return format!("did you mean `{meant}`?");
        }
        let homes: Vec<String> =
            TABLES.iter().filter(|table| table.key(name).is_some()).map(|table| table.heading()).collect();
        if homes.is_empty() {
            return format!("known here: {}", known.collect::<Vec<_>>().join(", "));
        }
        format!("`{name}` belongs in {}", homes.join(" or "))
    }
}

fn bytes(entry: &Entry<'_>) -> Option<u64> {
    if entry.as_number() == Some(0) {
        return Some(0);
    }
    entry.check(units::size(entry.text("a size such as \"8KiB\"")?))
}

/// The tables of a list with their offsets; none: it is not a list of tables.
fn each_table(item: &Item) -> Option<Vec<(&dyn TableLike, Option<usize>)>> {
    let start = |span: Option<std::ops::Range<usize>>| span.map(|span| span.start);
    match item {
        Item::ArrayOfTables(tables) => {
            Some(tables.iter().map(|table| (table as &dyn TableLike, start(table.span()))).collect())
        }
        Item::Value(Value::Array(values)) => values
            .iter()
            .map(|value| value.as_inline_table().map(|table| (table as &dyn TableLike, start(table.span()))))
            .collect(),
        _ => None,
    }
}
