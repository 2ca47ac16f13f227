select id from sessions where id = :session and user_id = :user for no key update
