with recursive path as (
    select no, parent, message, 1 as depth from messages
    where session_id = :session and no = :head
    union all
    select m.no, m.parent, m.message, p.depth + 1
    from path p join messages m on m.session_id = :session and m.no = p.parent
    where p.depth < :limit
)
select message from path order by no
