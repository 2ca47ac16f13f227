/* claim path */
with recursive path as (
    select no, parent, message, 1 as depth from messages
    where session_id = :session and no = :head
        and no is distinct from cast(:known as bigint)
    union all
    select m.no, m.parent, m.message, p.depth + 1
    from path p join messages m on m.session_id = :session and m.no = p.parent
    where p.depth < :limit and m.no is distinct from cast(:known as bigint)
)
select parent, message from path order by no
