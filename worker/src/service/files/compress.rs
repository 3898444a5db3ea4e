//! stub
use crate::http::Coding;
pub(super) fn whole(_c: Coding, b: &[u8]) -> Vec<u8> {
    b.to_vec()
}
pub(super) fn is_compressible(_m: &str) -> bool {
    false
}
pub(super) struct Stream;
impl Stream {
    pub(super) fn new(_c: Coding) -> Option<Stream> {
        None
    }
    pub(super) fn offers(_c: Coding) -> bool {
        false
    }
    pub(super) fn push(&mut self, _b: &[u8], _o: &mut Vec<u8>) {}
    pub(super) fn finish(self, _o: &mut Vec<u8>) {}
}
