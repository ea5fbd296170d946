//! Reads TOML tables key by key, remembers where everything stands, and collects mistakes instead of stopping.
//!
//! A reader asks a [`Section`] for each key it knows; `finish` reports the keys nobody asked for. So what is known
//! is exactly what is read, and no list of keys has to be kept beside the code.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expand::{self, Expanded};
use super::{Environment, Finding, Origin, units};

/// The file being read.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    environment: &'a Environment,
    /// Keys that the contract names and this version does not have, with their sections.
    not_yet: &'a [&'a str],
    findings: RefCell<Vec<Finding>>,
}

/// Where a value stands, and whether it may be shown.
#[derive(Debug, Clone)]
pub(super) struct At {
    /// The key with its sections.
    pub key: String,
    /// Place in the file.
    pub origin: Origin,
    /// It contains a reference and may be a secret.
    pub hidden: bool,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub at: At,
}

impl<T> Found<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Found<U> {
        Found { value: change(self.value), at: self.at }
    }
}

/// One table of the file.
pub(super) struct Section<'d, 'i> {
    document: &'d Document<'d>,
    /// `backend.mlflow`, for example; empty for the root.
    name: String,
    /// The same without names given by the user, as in the contract: `backend`.
    kind: String,
    /// The place of its head; of nothing when the table is not in the file.
    start: usize,
    table: Option<&'d DeTable<'i>>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str, environment: &'a Environment, not_yet: &'a [&'a str]) -> Self {
        Self { path, text, environment, not_yet, findings: RefCell::default() }
    }

    /// Directory of the file: what relative paths start from.
    pub(super) fn beside(&self) -> &'a Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The outermost table.
    pub(super) fn root<'d, 'i>(&'d self, table: &'d DeTable<'i>) -> Section<'d, 'i> {
        Section {
            document: self,
            name: String::new(),
            kind: String::new(),
            start: 0,
            table: Some(table),
            asked: RefCell::default(),
        }
    }

    /// All mistakes so far.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.findings.into_inner()
    }

    /// A place in the file, counted as editors count.
    pub(super) fn origin(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Origin::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// Notes a mistake.
    pub(super) fn mistake(&self, at: &At, message: impl Into<String>) {
        self.findings.borrow_mut().push(Finding {
            origin: at.origin.clone(),
            key: at.key.clone(),
            message: message.into(),
        });
    }
}

impl<'d, 'i> Section<'d, 'i> {
    /// The place of the section's head.
    pub(super) fn at(&self) -> At {
        At { key: self.name.clone(), origin: self.document.origin(self.start), hidden: false }
    }

    /// Notes a mistake.
    pub(super) fn mistake(&self, at: &At, message: impl Into<String>) {
        self.document.mistake(at, message);
    }

    /// Takes another name, for an element of a list of tables that says its own.
    pub(super) fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// Whether the key is in the file, readable or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// A string with its references replaced.
    pub(super) fn string(&self, key: &'static str) -> Option<Found<String>> {
        let (value, at) = self.value(key)?;
        self.read_string(value, at, "a string")
    }

    /// A path; a relative one is meant from the directory of the file.
    pub(super) fn path(&self, key: &'static str) -> Option<Found<PathBuf>> {
        let found = self.string(key)?;
        if !self.is_path(&found) {
            return None;
        }
        Some(found.map(|text| self.document.beside().join(text)))
    }

    /// The place of a Unix socket: a path, or `@` and a name in the abstract name space.
    pub(super) fn socket_path(&self, key: &'static str) -> Option<Found<PathBuf>> {
        let found = self.string(key)?;
        match found.value.strip_prefix('@') {
            None if self.is_path(&found) => Some(found.map(|text| self.document.beside().join(text))),
            None => None,
            Some("") => {
                self.mistake(&found.at, "has no name behind the \"@\"");
                None
            }
            Some(name) if name.contains('\0') => {
                self.mistake(&found.at, "contains a zero byte");
                None
            }
            Some(_) => Some(found.map(PathBuf::from)),
        }
    }

    /// A file that must exist; a relative path is meant among the credentials, then beside the file.
    pub(super) fn existing_file(&self, key: &'static str) -> Option<Found<PathBuf>> {
        let found = self.string(key)?;
        if !self.is_path(&found) {
            return None;
        }
        let located = expand::locate(Path::new(&found.value), self.document.beside(), self.document.environment)
            .and_then(|path| match expand::read(&path) {
                Ok(_) => Ok(path),
                Err(reason) => Err(format!("names {}: {reason}", path.display())),
            });
        match located {
            Ok(path) => Some(found.map(|_| path)),
            // Somebody may have put the secret itself where the name of its file belongs.
            Err(_) if found.at.hidden => {
                self.mistake(&found.at, "does not name a file that can be read");
                None
            }
            Err(reason) => {
                self.mistake(&found.at, reason);
                None
            }
        }
    }

    /// A size.
    pub(super) fn bytes(&self, key: &'static str) -> Option<Found<u64>> {
        self.unit(key, "a size such as \"64MiB\"", units::parse_bytes)
    }

    /// A time.
    pub(super) fn time(&self, key: &'static str) -> Option<Found<Duration>> {
        self.unit(key, "a time such as \"30s\"", units::parse_time)
    }

    /// A whole number that is not negative.
    pub(super) fn integer(&self, key: &'static str) -> Option<Found<u64>> {
        let (value, at) = self.value(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong(&at, value, "a whole number");
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Some(Found { value, at }),
            Err(_) => {
                self.mistake(&at, "must be a whole number that is not negative");
                None
            }
        }
    }

    /// A list of user ids.
    pub(super) fn uids(&self, key: &'static str) -> Option<Found<Vec<u32>>> {
        let (value, at) = self.value(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            return self.wrong(&at, value, "a list of user ids such as [1000]");
        };
        let uid = |element: &Spanned<DeValue<'_>>| {
            let DeValue::Integer(integer) = element.get_ref() else { return None };
            u32::from_str_radix(integer.as_str(), integer.radix()).ok()
        };
        let Some(uids) = array.iter().map(uid).collect::<Option<Vec<_>>>() else {
            self.mistake(&at, "must be a list of user ids, which are whole numbers");
            return None;
        };
        if uids.is_empty() {
            self.mistake(
                &at,
                "is empty, so nobody could write to the socket; leave it out to let everybody whom the mode admits",
            );
            return None;
        }
        Some(Found { value: uids, at })
    }

    /// A truth value.
    pub(super) fn boolean(&self, key: &'static str) -> Option<Found<bool>> {
        let (value, at) = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(value) => Some(Found { value: *value, at }),
            _ => self.wrong(&at, value, "true or false"),
        }
    }

    /// Permission bits, as `"0660"` or `0o660`.
    pub(super) fn mode(&self, key: &'static str) -> Option<Found<u32>> {
        let (value, at) = self.value(key)?;
        let bits = match value.get_ref() {
            DeValue::Integer(integer) if integer.radix() == 8 => u32::from_str_radix(integer.as_str(), 8).ok(),
            DeValue::String(text) => u32::from_str_radix(text, 8).ok(),
            _ => return self.wrong(&at, value, "permission bits in octal such as \"0660\""),
        };
        match bits.filter(|bits| *bits <= 0o777) {
            Some(value) => Some(Found { value, at }),
            None => {
                self.mistake(&at, "must be permission bits in octal such as \"0660\"");
                None
            }
        }
    }

    /// A list of strings.
    pub(super) fn strings(&self, key: &'static str) -> Option<Found<Vec<Found<String>>>> {
        let (value, at) = self.value(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            return self.wrong(&at, value, "a list of strings such as [\"...\"]");
        };
        let place =
            |element: &Spanned<DeValue<'_>>| At { origin: self.document.origin(element.span().start), ..at.clone() };
        let values = array.iter().filter_map(|element| self.read_string(element, place(element), "a string")).collect();
        Some(Found { value: values, at })
    }

    /// A table whose keys the user chose, with string values.
    pub(super) fn map(&self, key: &'static str) -> Vec<(String, Found<String>)> {
        let Some((value, at)) = self.value(key) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong::<()>(&at, value, "a table such as { \"x-team\" = \"search\" }");
            return Vec::new();
        };
        let read = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            let at = At {
                key: format!("{}.{name}", at.key),
                origin: self.document.origin(value.span().start),
                hidden: false,
            };
            Some((name.to_string(), self.read_string(value, at, "a string")?))
        };
        table.iter().filter_map(read).collect()
    }

    /// A table inside this one; when it is not in the file, one that has nothing.
    pub(super) fn section(&self, key: &'static str) -> Section<'d, 'i> {
        let (start, table) = match self.value(key) {
            None => (self.start, None),
            Some((value, at)) => match value.get_ref() {
                DeValue::Table(table) => (value.span().start, Some(table)),
                _ => {
                    self.wrong::<()>(&at, value, &format!("a table: [{}]", self.full(key)));
                    (self.start, None)
                }
            },
        };
        Section {
            document: self.document,
            name: self.full(key),
            kind: self.full_kind(key),
            start,
            table,
            asked: RefCell::default(),
        }
    }

    /// A list of tables.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'d, 'i>> {
        let Some((value, at)) = self.value(key) else { return Vec::new() };
        let head = format!("[[{}]]", self.full(key));
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong::<()>(&at, value, &format!("a list of tables: write {head} with two brackets"));
            return Vec::new();
        };
        let read = |(index, element): (usize, &'d Spanned<DeValue<'i>>)| {
            let name = format!("{}[{}]", self.full(key), index + 1);
            let DeValue::Table(table) = element.get_ref() else {
                let at = At { key: name, origin: self.document.origin(element.span().start), hidden: false };
                return self.wrong(&at, element, &format!("a table: write {head}"));
            };
            Some(Section {
                document: self.document,
                name,
                kind: self.full_kind(key),
                start: element.span().start,
                table: Some(table),
                asked: RefCell::default(),
            })
        };
        array.iter().enumerate().filter_map(read).collect()
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(&self) {
        let asked = self.asked.borrow();
        let Some(table) = self.table else { return };
        for (key, _) in table.iter() {
            let name: &str = key.get_ref();
            if asked.contains(name) {
                continue;
            }
            let at = At { key: self.full(name), origin: self.document.origin(key.span().start), hidden: false };
            let not_yet = self.document.not_yet.contains(&self.full_kind(name).as_str());
            let message = if not_yet {
                "is not available in this version; remove it".to_owned()
            } else if let Some(close) = closest(name, &*asked) {
                format!("is unknown; did you mean {close}?")
            } else {
                let known: Vec<_> = asked.iter().copied().collect();
                format!("is unknown; known here: {}", known.join(", "))
            };
            self.mistake(&at, message);
        }
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn full_kind(&self, key: &str) -> String {
        if self.kind.is_empty() { key.to_owned() } else { format!("{}.{key}", self.kind) }
    }

    /// The value of a key, which from now on is a known one.
    fn value(&self, key: &'static str) -> Option<(&'d Spanned<DeValue<'i>>, At)> {
        self.asked.borrow_mut().insert(key);
        let (name, value) = self.table?.get_key_value(key)?;
        let at = At { key: self.full(key), origin: self.document.origin(name.span().start), hidden: false };
        Some((value, at))
    }

    fn unit<T>(
        &self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Found<T>> {
        let (value, at) = self.value(key)?;
        let found = self.read_string(value, at, expected)?;
        match parse(&found.value) {
            Ok(value) => Some(Found { value, at: found.at }),
            Err(reason) => {
                self.mistake(&found.at, reason);
                None
            }
        }
    }

    fn read_string(&self, value: &Spanned<DeValue<'_>>, at: At, expected: &str) -> Option<Found<String>> {
        let DeValue::String(text) = value.get_ref() else {
            return self.wrong(&at, value, expected);
        };
        match expand::expand(text, self.document.beside(), self.document.environment) {
            Ok(Expanded { text, hidden }) => Some(Found { value: text, at: At { hidden, ..at } }),
            Err(reason) => {
                self.mistake(&at, reason);
                None
            }
        }
    }

    fn is_path(&self, found: &Found<String>) -> bool {
        let complaint = match found.value.as_str() {
            "" => "is empty",
            text if text.starts_with('~') => "begins with \"~\", which only shells know; write \"${env:HOME}\" instead",
            text if text.contains('\0') => "contains a zero byte",
            _ => return true,
        };
        self.mistake(&found.at, complaint);
        false
    }

    fn wrong<T>(&self, at: &At, value: &Spanned<DeValue<'_>>, expected: &str) -> Option<T> {
        let got = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.mistake(at, format!("must be {expected}, and is {got}"));
        None
    }
}

/// The known word that `word` was probably meant to be.
pub(super) fn closest<'w>(word: &str, known: impl IntoIterator<Item = &'w &'static str>) -> Option<&'static str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase().replace('-', "_"), candidate), *candidate))
        // Short words are close to everything.
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len() / 4))
        .min()
        .map(|(_, candidate)| candidate)
}
