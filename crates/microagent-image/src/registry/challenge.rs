//! How a registry asks for credentials: the challenges of its answers.

/// One `WWW-Authenticate` challenge (RFC 9110 §11.6.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Fetch a token at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// Send user name and password.
    Basic,
}

/// Reads the value of one `WWW-Authenticate` header; schemes nobody knows are left out.
pub(super) fn challenges(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let scheme = &rest[..end];
        rest = rest[end..].trim_start();
        let mut parameters: Vec<(String, String)> = Vec::new();
        while let Some((name, value, after)) = parameter(rest) {
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        rest = rest.trim_start_matches(',').trim_start();
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(key, _)| key == name)?;
            Some(parameters.swap_remove(at).1)
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = take("realm")
        {
            found.push(Challenge::Bearer {
                realm,
                service: take("service"),
                scope: take("scope"),
            });
        }
    }
    found
}

/// `name=value` or `name="value"` at the start of `text`, and what follows it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim_end();
    if name.is_empty() || name.contains([' ', ',', '"']) {
        return None;
    }
    let rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((name, rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    Some((name, value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_as_registries_write_them() {
        assert_eq!(
            challenges(
                r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#
            ),
            [Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("r.example".into()),
                scope: Some("repository:a/b:pull,push".into()),
            }]
        );
        assert_eq!(challenges("Basic realm=\"x\""), [Challenge::Basic]);
        assert_eq!(
            challenges(r#"Negotiate, basic realm="a \"b\", c", bearer realm=https://x"#),
            [
                Challenge::Basic,
                Challenge::Bearer {
                    realm: "https://x".into(),
                    service: None,
                    scope: None
                }
            ]
        );
        assert_eq!(challenges(""), []);
    }

    proptest! {
        #[test]
        fn any_header_ends(value in ".{0,120}") {
            let _ = challenges(&value);
        }
    }
}
