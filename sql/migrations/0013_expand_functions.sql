SELECT pljobs._migrate('0013_expand_functions', $migration$

-- Functions alone. This says that they are here: the install of an older release would put its own back.
SELECT;

$migration$);
