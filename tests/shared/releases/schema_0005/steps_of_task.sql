/* claim steps */
select no, kind, name, effect, input_hash, status, output from steps
where session_id = :session and task_seq = :task_seq order by no
