//! Every effect of Millrace.
