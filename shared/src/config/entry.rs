//! A value as written: it knows its key and its place, so that whoever reads it need only say what is wrong.

use toml_edit::{Item, TableLike, Value};

use super::nearest::{nearest, one_of};
use super::problem::{Place, Refusal};
use super::source::Source;
use super::written::Key;

/// One value of the file.
pub(super) struct Entry<'a> {
    source: &'a Source<'a>,
    /// The whole name of the key, as in `workers.count`.
    name: String,
    key: &'static Key,
    content: Content<'a>,
    offset: usize,
}

/// What stands there: TOML tells headed tables from values.
enum Content<'a> {
    Value(&'a Value),
    Tables(&'a Item),
}

/// One pair of a table whose keys are free.
pub(super) struct Pair<'a> {
    /// The key.
    pub(super) name: &'a str,
    pub(super) value: Entry<'a>,
    table: String,
    offset: usize,
}

/// The words a key knows, and what each means.
pub(super) struct Choices<T: 'static> {
    /// What the words are, as in "unknown model".
    pub(super) what: &'static str,
    /// At least one.
    pub(super) known: &'static [(&'static str, T)],
}

impl<'a> Entry<'a> {
    /// The value `item` of `key`, whose key stands at `key_offset`.
    pub(super) fn new(
        source: &'a Source<'a>,
        name: String,
        key: &'static Key,
        item: &'a Item,
        key_offset: usize,
    ) -> Self {
        let (content, span) = match item {
            Item::Value(value) => (Content::Value(value), value.span()),
            _ => (Content::Tables(item), None),
        };
        Self { source, name, key, content, offset: span.map_or(key_offset, |span| span.start) }
    }

    pub(super) fn source(&self) -> &'a Source<'a> {
        self.source
    }

    pub(super) fn place(&self) -> Place {
        self.source.place(self.offset)
    }

    /// Reports that the value is not taken.
    pub(super) fn refuse(&self, text: impl Into<String>, hint: impl Into<String>) {
        let text = format!("{}: {}", self.name, text.into());
        self.source.report(self.offset, Refusal::new(text, hint));
    }

    /// The checked value, or a report why it is refused.
    pub(super) fn check<T>(&self, checked: Result<T, Refusal>) -> Option<T> {
        checked.map_err(|refusal| self.refuse(refusal.text, refusal.hint)).ok()
    }

    /// A string; `what` names it, as in "a duration".
    pub(super) fn text(&self, what: &str) -> Option<&'a str> {
        self.expect(self.as_text(), what)
    }

    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value().and_then(Value::as_str)
    }

    pub(super) fn as_number(&self) -> Option<i64> {
        self.value().and_then(Value::as_integer)
    }

    pub(super) fn number(&self) -> Option<i64> {
        self.expect(self.as_number(), "a whole number")
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.expect(self.value().and_then(Value::as_bool), "true or false")
    }

    /// The entries of a list.
    pub(super) fn list(&self, what: &str) -> Option<Vec<Entry<'a>>> {
        let array = self.expect(self.value().and_then(Value::as_array), what)?;
        Some(array.iter().map(|value| self.element(value)).collect())
    }

    /// The pairs of a table whose keys are free, headed or inline, in the order of the file.
    pub(super) fn pairs(&self, what: &str) -> Option<Vec<Pair<'a>>> {
        let table = match self.content {
            Content::Value(value) => value.as_inline_table().map(|table| table as &dyn TableLike),
            Content::Tables(item) => item.as_table_like(),
        };
        let table = self.expect(table, what)?;
        Some(table.iter().map(|(name, item)| self.pair(table, name, item)).collect())
    }

    /// One of the words.
    pub(super) fn choice<T: Copy>(&self, choices: &Choices<T>) -> Option<T> {
        let words = choices.known.iter().map(|(word, _)| *word);
        let word = self.text(&one_of(words.clone()))?;
        let known = choices.known.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning);
        if known.is_none() {
            self.refuse_word(word, choices.what, words);
        }
        known
    }

    /// One of `words`, which are `what`.
    pub(super) fn word(&self, what: &str, words: &[&str]) -> Option<String> {
        let word = self.text(&one_of(words.iter().copied()))?;
        if !words.contains(&word) {
            self.refuse_word(word, what, words.iter().copied());
            return None;
        }
        Some(word.to_owned())
    }

    /// The value if it is there, or a report that something else is.
    pub(super) fn expect<T>(&self, value: Option<T>, what: &str) -> Option<T> {
        if value.is_none() {
            let hint = format!("write {what} ({}: {})", self.key.name, self.key.about);
            self.refuse(format!("expected {what}, found {}", self.found()), hint);
        }
        value
    }

    fn refuse_word<'w>(&self, word: &str, what: &str, words: impl Iterator<Item = &'w str> + Clone) {
        let hint = match nearest(word, words.clone()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("use {}", one_of(words)),
        };
        self.refuse(format!("unknown {what} {word:?}"), hint);
    }

    fn value(&self) -> Option<&'a Value> {
        match self.content {
            Content::Value(value) => Some(value),
            Content::Tables(_) => None,
        }
    }

    fn pair(&self, table: &'a dyn TableLike, name: &'a str, item: &'a Item) -> Pair<'a> {
        let span = table.key(name).and_then(|key| key.span());
        let offset = span.map_or(self.offset, |span| span.start);
        let value = Entry::new(self.source, format!("{}.{name}", self.name), self.key, item, offset);
        Pair { name, value, table: self.name.clone(), offset }
    }

    fn element(&self, value: &'a Value) -> Entry<'a> {
        let offset = value.span().map_or(self.offset, |span| span.start);
        Entry { source: self.source, name: self.name.clone(), key: self.key, content: Content::Value(value), offset }
    }

    pub(super) fn found(&self) -> &'static str {
        match self.content {
            Content::Tables(Item::ArrayOfTables(_)) => "a list of tables",
            Content::Tables(_) => "a table",
            Content::Value(value) => kind_of(value),
        }
    }
}

impl Pair<'_> {
    /// Where the key stands.
    pub(super) fn place(&self) -> Place {
        self.value.source.place(self.offset)
    }

    /// Reports that the key is not taken.
    pub(super) fn refuse_name(&self, text: impl Into<String>, hint: impl Into<String>) {
        let text = format!("{}: {}", self.table, text.into());
        self.value.source.report(self.offset, Refusal::new(text, hint));
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    }
}
