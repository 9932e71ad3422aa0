//! Removes secrets from arguments before anything is written.
//!
//! By rule, not by guess: values of options and assignments whose name says "secret", credentials in URLs, authorization headers, and
//! tokens of well-known shapes. The digest in the record covers the arguments as they really were, so a redacted record still proves
//! which input was used. Left out: environment and standard input, which are recorded by digest alone.

/// Longest argument that is recorded, bytes; the rest is replaced by its length.
const MAX_ARGUMENT_BYTES: usize = 256;
/// Most arguments that are recorded.
const MAX_ARGUMENTS: usize = 64;
/// Arguments that are recorded together, bytes: beside controls and files they have to fit into an event.
const MAX_RECORDED_BYTES: usize = 8 << 10;
/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";

const SECRET_NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "private-key",
    "private_key",
    "credential",
];
const TOKEN_PREFIXES: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "AKIA",
    "ASIA",
    "xoxb-",
    "xoxp-",
    "eyJ",
    "npm_",
    "AIza",
    "-----BEGIN",
];
const AUTH_SCHEMES: [&str; 3] = ["bearer ", "basic ", "token "];

/// The arguments as they may be recorded.
pub fn redact_arguments(arguments: &[String]) -> Vec<String> {
    let mut redacted = Vec::with_capacity(arguments.len().min(MAX_ARGUMENTS));
    let (mut value_is_secret, mut bytes) = (false, 0);
    for argument in arguments.iter().take(MAX_ARGUMENTS) {
        let is_option = argument.starts_with('-');
        if value_is_secret && !is_option {
            redacted.push(REDACTED.to_owned());
            value_is_secret = false;
            continue;
        }
        value_is_secret = is_option && !argument.contains('=') && names_a_secret(argument);
        let argument = clip(redact(argument));
        bytes += argument.len();
        if bytes > MAX_RECORDED_BYTES {
            break;
        }
        redacted.push(argument);
    }
    let left = arguments.len() - redacted.len();
    if left > 0 {
        redacted.push(format!("[{left} more arguments]"));
    }
    redacted
}

/// One text as it may be recorded.
pub fn redact(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    // A header such as "Authorization: Bearer …", alone or within an argument.
    if let Some(at) =
        AUTH_SCHEMES.iter().filter_map(|scheme| lower.find(scheme).map(|at| at + scheme.len())).min()
        && lower.contains("authorization")
    {
        return format!("{}{REDACTED}", &text[..at]);
    }
    if let Some((name, value)) = text.split_once(['=', ':'])
        && !value.is_empty()
        && !value.starts_with("//")
        && names_a_secret(name)
    {
        return format!("{}{REDACTED}", &text[..text.len() - value.len()]);
    }
    let words: Vec<_> = text.split(' ').map(redact_word).collect();
    words.join(" ")
}

fn redact_word(word: &str) -> String {
    if let Some(start) = word.find("://").map(|at| at + 3) {
        let authority_end = word[start..].find(['/', '?', '#']).map_or(word.len(), |at| start + at);
        if let Some(at) = word[start..authority_end].rfind('@') {
            return format!("{}{REDACTED}{}", &word[..start], &word[start + at..]);
        }
        return word.to_owned();
    }
    for (at, _) in word.char_indices().filter(|(at, _)| starts_a_token(word, *at)) {
        if TOKEN_PREFIXES
            .iter()
            .any(|prefix| word[at..].starts_with(prefix) && word[at..].len() >= prefix.len() + 8)
        {
            return format!("{}{REDACTED}", &word[..at]);
        }
    }
    if let Some((name, value)) = word.split_once('=')
        && !value.is_empty()
        && names_a_secret(name)
    {
        return format!("{name}={REDACTED}");
    }
    word.to_owned()
}

fn starts_a_token(word: &str, at: usize) -> bool {
    word[..at]
        .chars()
        .next_back()
        .is_none_or(|before| matches!(before, '=' | ':' | '"' | '\'' | ',' | '/' | '('))
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

fn clip(text: String) -> String {
    if text.len() <= MAX_ARGUMENT_BYTES {
        return text;
    }
    let kept = exchequer_event::name::clip(&text, MAX_ARGUMENT_BYTES);
    format!("{kept}[{} more bytes]", text.len() - kept.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expected: &[&str]) {
        let arguments: Vec<_> = arguments.iter().map(|&a| a.to_owned()).collect();
        assert_eq!(redact_arguments(&arguments), expected);
    }

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        check(&["-la", "/tmp", "a=b", "key: value"], &["-la", "/tmp", "a=b", "key: value"]);
        check(&["--password=hunter2", "x"], &["--password=[redacted]", "x"]);
        check(&["--token", "abc", "x"], &["--token", "[redacted]", "x"]);
        check(&["--token", "--verbose", "x"], &["--token", "--verbose", "x"]);
        check(&["DB_PASSWORD=x y"], &["DB_PASSWORD=[redacted]"]);
        check(&["https://user:pw@host/p?q=1"], &["https://[redacted]@host/p?q=1"]);
        check(&["-H", "Authorization: Bearer abc.def"], &["-H", "Authorization: Bearer [redacted]"]);
        check(&["ghp_0123456789abcdef"], &["[redacted]"]);
        check(&["run with sk-0123456789abc now"], &["run with [redacted] now"]);
        check(&["x=eyJhbGciOiJFZERTQSJ9"], &["x=[redacted]"]);
        check(&["echo API_KEY=1234 && ls"], &["echo API_KEY=[redacted]"]);
    }

    #[test]
    fn long_inputs_are_bounded() {
        let long = "ä".repeat(400);
        let redacted = redact_arguments(&vec![long; 100]);
        assert_eq!(redacted[0], format!("{}[544 more bytes]", "ä".repeat(128)));
        assert!(redacted.iter().map(String::len).sum::<usize>() <= MAX_RECORDED_BYTES + 32);
        assert_eq!(redacted.last().unwrap(), &format!("[{} more arguments]", 101 - redacted.len()));
        let redacted = redact_arguments(&vec!["x".to_owned(); 100]);
        assert_eq!(redacted.len(), MAX_ARGUMENTS + 1);
        assert_eq!(redacted[MAX_ARGUMENTS], "[36 more arguments]");
    }
}
