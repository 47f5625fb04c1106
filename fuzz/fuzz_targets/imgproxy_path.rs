#![no_main]

use afterimage::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzzing::imgproxy_path(input));
