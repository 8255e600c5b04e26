"""The administrator's rules: who may use which store, and to which addresses connections may lead."""
