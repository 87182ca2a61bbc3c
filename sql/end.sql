-- The rest of the transaction goes on as it was.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout',
                                  pg_catalog.current_setting('pljobs.former_lock_timeout'), true);
    PERFORM pg_catalog.set_config('statement_timeout',
                                  pg_catalog.current_setting('pljobs.former_statement_timeout'), true);
    IF pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL THEN
        PERFORM pg_catalog.set_config('transaction_timeout',
                                      pg_catalog.current_setting('pljobs.former_transaction_timeout'), true);
    END IF;
    PERFORM pg_catalog.set_config('role', pg_catalog.current_setting('pljobs.former_role'), true);
    PERFORM pg_catalog.set_config('search_path',
                                  pg_catalog.current_setting('pljobs.former_search_path'), true);
END
$$;
