//! What apps said lately that the server may not have yet: who asks for it meanwhile gets it from here.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use bytes::Bytes;
use serde_json::Value;

/// All that is remembered, as text.
const BYTES_MAX: usize = 8 << 20;
/// One thing that is larger is not remembered.
const ONE_BYTES_MAX: usize = 256 << 10;

/// Messages by their names; the oldest are forgotten first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    messages: HashMap<String, Bytes>,
    /// In order of the first version; a name is here once.
    order: VecDeque<String>,
    bytes: usize,
}

impl Recent {
    /// Remembers a message instead of what was known under its name.
    pub(super) fn keep(&self, name: &str, message: &Value) {
        let text = Bytes::from(message.to_string());
        let mut inner = self.inner.lock().expect("locked for moments that cannot panic");
        inner.keep(name, text, BYTES_MAX);
    }

    /// What was said last under this name.
    pub(super) fn find(&self, name: &str) -> Option<Value> {
        let text = self.inner.lock().expect("locked for moments that cannot panic").messages.get(name).cloned()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Inner {
    fn keep(&mut self, name: &str, text: Bytes, bytes_max: usize) {
        let Self { messages, order, bytes } = self;
        match messages.get(name) {
            Some(before) => *bytes -= cost(name, before),
            None => order.push_back(name.to_owned()),
        }
        // Too large a message takes the place of the one before all the same: that is not true any more.
        let text = if text.len() <= ONE_BYTES_MAX { text } else { Bytes::new() };
        *bytes += cost(name, &text);
        messages.insert(name.to_owned(), text);
        while *bytes > bytes_max
            && let Some(oldest) = order.pop_front()
        {
            *bytes -= messages.remove(&oldest).map_or(0, |forgotten| cost(&oldest, &forgotten));
        }
    }
}

/// What a message takes in memory, more or less.
fn cost(name: &str, text: &Bytes) -> usize {
    text.len() + 2 * name.len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_version_is_kept_and_the_oldest_name_goes_first() {
        let mut inner = Inner::default();
        for (name, text) in [("a", "1"), ("b", "22"), ("a", "333"), ("c", "4")] {
            inner.keep(name, Bytes::from_static(text.as_bytes()), 2 * 130 + 5);
        }
        assert_eq!((inner.bytes, inner.order.len(), inner.messages.len()), (263, 2, 2), "a made room for c");
        assert_eq!((inner.messages.get("a"), inner.messages["b"].as_ref()), (None, &b"22"[..]));
    }

    #[test]
    fn what_is_too_large_is_not_mistaken_for_what_was_before() {
        let recent = Recent::default();
        recent.keep("a", &Value::from(1));
        assert_eq!(recent.find("a"), Some(Value::from(1)));
        recent.keep("a", &Value::from("x".repeat(ONE_BYTES_MAX)));
        assert_eq!(recent.find("a"), None);
    }
}
