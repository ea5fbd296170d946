//! What a file's name says about it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::cut::Form;

/// What is done with a file, going by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is taken.
    Traces(Form, Packing),
    /// Its writer is not done with it.
    Unfinished,
    /// It is none that is understood here.
    Unknown,
}

/// How the whole file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Decides by the name alone. The one place where forms of files are told apart.
pub(super) fn kind(name: &OsStr) -> Kind {
    let name = name.as_bytes();
    if name.starts_with(b".") || name.ends_with(b".tmp") || name.ends_with(b".part") {
        return Kind::Unfinished;
    }
    let (stem, packing) = match (name.strip_suffix(b".gz"), name.strip_suffix(b".zst")) {
        (Some(stem), _) => (stem, Packing::Gzip),
        (_, Some(stem)) => (stem, Packing::Zstd),
        _ => (name, Packing::Plain),
    };
    let forms = [(&b".json"[..], Form::Documents), (b".jsonl", Form::Lines), (b".pb", Form::Protobuf)];
    let form = forms.into_iter().find(|(ending, _)| stem.ends_with(ending));
    form.map_or(Kind::Unknown, |(_, form)| Kind::Traces(form, packing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_decides() {
        let of = |name: &str| kind(OsStr::new(name));
        assert_eq!(of("a.json"), Kind::Traces(Form::Documents, Packing::Plain));
        assert_eq!(of("a.b.jsonl.gz"), Kind::Traces(Form::Lines, Packing::Gzip));
        assert_eq!(of("a.pb.zst"), Kind::Traces(Form::Protobuf, Packing::Zstd));
        for unfinished in [".a.json", "a.json.tmp", "a.pb.part", ".", ".taken"] {
            assert_eq!(of(unfinished), Kind::Unfinished, "{unfinished}");
        }
        for unknown in ["a", "json", "a.JSON", "a.gz", "a.json.bz2", "a.json.gz.gz", "rejected"] {
            assert_eq!(of(unknown), Kind::Unknown, "{unknown}");
        }
    }
}
