"""Policy files that ship with rlbatch; a package so that they are installed with it."""
