SELECT pljobs._migrate('0008_expand_functions', $migration$

-- Nothing of the tables: 0.3.2 changes functions, and older installers stop at this name.

$migration$);
