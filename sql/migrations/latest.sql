-- The name of the newest migration in this folder.
SELECT pljobs._refuse_newer('0003_expand_idempotency');
