-- The name of the newest migration in this folder.
DO $$
BEGIN
    PERFORM pljobs._refuse_newer('0003_expand_idempotency');
END
$$;
