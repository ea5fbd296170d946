//! Which daemons has this request passed? Guards against loops.
//!
//! Every daemon writes its id behind those that a record came with, and refuses what names itself. Two daemons that
//! ship to each other would else double every trace for ever.

use http::{HeaderMap, HeaderName};

use super::refusal::Problem;

/// Where the ids stand, separated by commas; in gRPC it is metadata.
pub(super) const VIA: HeaderName = HeaderName::from_static(crate::backend::VIA);

/// More daemons in a row than anybody needs. One loop of them all is found when it closes; this bounds the rest.
const MOST: usize = 16;

/// Longest id that is taken. Ours have 16 digits.
const LONGEST: usize = 32;

/// The ids that a request passed, in order.
///
/// # Errors
/// It passed this daemon, or more daemons than there may be, or the header is not a list of ids.
pub(super) fn read(headers: &HeaderMap, own: &str) -> Result<Vec<String>, Problem> {
    let mut via = Vec::new();
    for value in headers.get_all(VIA) {
        let text = value.to_str().map_err(|_| malformed())?;
        for id in text.split(',').map(str::trim).filter(|id| !id.is_empty()) {
            if id.len() > LONGEST || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
                return Err(malformed());
            }
            if id.eq_ignore_ascii_case(own) {
                return Err(Problem::looped(format!(
                    "the request has passed this daemon before ({VIA} names its id, {own}): some of the daemons it \
                     passed ship to each other; take one of these backends out"
                )));
            }
            if via.len() == MOST {
                return Err(Problem::looped(format!(
                    "the request has passed more than {MOST} daemons ({VIA}): some of them probably ship to each other"
                )));
            }
            via.push(id.to_owned());
        }
    }
    Ok(via)
}

fn malformed() -> Problem {
    Problem::invalid(format!("the header {VIA} is not a list of ids of daemons"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::receive::refusal::Code;

    fn via(values: &[&str]) -> Result<Vec<String>, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(VIA, HeaderValue::from_str(value).expect("a value"));
        }
        read(&headers, "ab12").map_err(|problem| problem.grpc)
    }

    #[test]
    fn ids_are_read_in_order() {
        assert_eq!(via(&[]), Ok(vec![]));
        assert_eq!(via(&["1, 2,", "3"]), Ok(vec!["1".into(), "2".into(), "3".into()]));
    }

    #[test]
    fn what_passed_this_daemon_is_refused() {
        for values in [&["ab12"][..], &["1,ab12"], &["1", "AB12 , 2"]] {
            assert_eq!(via(values), Err(Code::PermissionDenied), "{values:?}");
        }
        assert!(via(&["ab123,xab12"]).is_ok());
    }

    #[test]
    fn count_and_length_are_bounded() {
        let ids = |count: usize| vec!["x"; count].join(",");
        assert_eq!(via(&[&ids(MOST)]).map(|via| via.len()), Ok(MOST));
        assert_eq!(via(&[&ids(MOST + 1)]), Err(Code::PermissionDenied));
        assert!(via(&[&"x".repeat(LONGEST)]).is_ok());
        for bad in ["x".repeat(LONGEST + 1), "a b".into(), "a;b".into()] {
            assert_eq!(via(&[&bad]), Err(Code::InvalidArgument), "{bad}");
        }
    }
}
