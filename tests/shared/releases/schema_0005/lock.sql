/* claim lock */ select from sessions where id = :session for no key update
