/* claim events */
select seq, type, task_id, at, data from events
where session_id = :session and seq > :queued_seq and task_id = :task order by seq
