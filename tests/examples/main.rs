//! The examples, as somebody uses them: `make examples`. Apart from the other tests, because of what they need besides.

#[path = "../support/mod.rs"]
mod support;

// The Next.js application, in a real browser.
mod nextjs;
