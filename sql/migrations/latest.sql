-- The name of the newest migration in this folder.
DO $$
BEGIN
    PERFORM pljobs._refuse_newer('0013_expand_functions');
END
$$;
