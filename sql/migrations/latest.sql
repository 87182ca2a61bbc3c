-- The name of the newest migration in this folder.
SELECT pljobs._refuse_newer('0002_expand_roles');
