//! Says where an HTTP service is. It connects to nothing.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

/// Where an HTTP service listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `http://host:port` or `https://host:port`, without a path.
    Tcp(Uri),
    /// `unix:/path/to/socket`, HTTP without TLS.
    Unix(PathBuf),
}

/// The text is not an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH/OF/SOCKET")]
pub struct InvalidEndpoint;

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return path
                .is_absolute()
                .then_some(Self::Unix(path))
                .ok_or(InvalidEndpoint);
        }
        let uri: Uri = text.parse().map_err(|_| InvalidEndpoint)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        // Credentials in the URL would end up in logs.
        let is_bare = uri.authority().is_some_and(|at| !at.as_str().contains('@'))
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none();
        (is_http && is_bare)
            .then_some(Self::Tcp(uri))
            .ok_or(InvalidEndpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// The scheme of the service's URLs.
    pub fn scheme(&self) -> &str {
        match self {
            Self::Tcp(uri) => uri.scheme_str().unwrap_or("http"),
            Self::Unix(_) => "http",
        }
    }

    /// The authority of the service's URLs.
    pub fn authority(&self) -> &str {
        match self {
            Self::Tcp(uri) => uri.authority().map_or("", |authority| authority.as_str()),
            Self::Unix(_) => "localhost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_were_written() {
        for text in [
            "http://garage:3900",
            "https://s3.example.org",
            "unix:/run/garage.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_path_credentials_or_another_scheme_are_refused() {
        for text in [
            "garage:3900",
            "ftp://garage",
            "http://garage/bucket",
            "http://garage?x",
            "http://id:secret@garage",
            "unix:garage.sock",
            "",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(InvalidEndpoint), "{text}");
        }
    }
}
