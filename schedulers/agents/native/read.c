/* SPDX-License-Identifier: Apache-2.0 */
/* Messages: from the ring to the tasks and the policy's callbacks. */
#include <string.h>

#include "turns.h"

/* The bit of a record's length while it is still being written. */
#define RECORD_BUSY (1u << 31)

/* The kernel's header of a record in a ring buffer. */
struct record {
	u32 length, page_offset;
	struct message message;
};

/* There is news of task: forget that it was refused. 1 if it rested for that, 0 if not, or -1 with an exception. */
static int forget(struct turns *turns, struct task *task)
{
	PyObject *result;
	int rested = has_refusals(turns) ? PyDict_Contains(turns->refused, (PyObject *)task) : 0;

	if (rested <= 0)
		return rested;
	result = PyObject_CallMethod(turns->refusals, "forget", "O", (PyObject *)task);
	rested = result ? PyObject_IsTrue(result) : -1;
	Py_XDECREF(result);
	return rested;
}

/* The new task gtid, which is in the dict of tasks then. */
static PyObject *make_task(struct turns *turns, PyObject *gtid)
{
	PyObject *task = PyObject_CallFunctionObjArgs(turns->task_class, gtid, NULL);

	if (task && !PyObject_TypeCheck(task, task_type)) {
		PyErr_SetString(PyExc_TypeError, "task_type is not a subclass of Task");
		Py_CLEAR(task);
	}
	if (task && PyDict_SetItem(turns->tasks, gtid, task) < 0)
		Py_CLEAR(task);
	return task;
}

static bool call_back(struct turns *turns, long kind, PyObject *argument)
{
	if (kind >= CALLBACKS || !turns->callbacks[kind]) {
		PyErr_Format(PyExc_IndexError, "a message of the unknown type %ld", kind);
		return false;
	}
	return turns->callbacks[kind] == Py_None || call_with(turns->callbacks[kind], argument);
}

static bool about_cpu(struct turns *turns, const struct message *message)
{
	PyObject *cpu = PyLong_FromLong(message->cpu);
	bool done = cpu && call_back(turns, message->type, cpu);

	Py_XDECREF(cpu);
	return done;
}

/* Store the affinity that the message and, of CPUs from 64 on, shared memory tell; whether it is another than before. */
static bool set_allowed(struct turns *turns, struct task *task, const struct message *message)
{
	const struct column *words = &turns->allowed_rest;
	u64 *rest = task->allowed + 1;
	Py_ssize_t first = (Py_ssize_t)message->word * (CPU_WORDS - 1);
	bool changed = task->allowed[0] != message->allowed;

	task->allowed[0] = message->allowed;
	if (first + CPU_WORDS - 1 > words->length)
		return changed;
	for (int n = 0; n < CPU_WORDS - 1; n++) {
		u64 word = *column_u64(words, first + n);

		changed |= rest[n] != word;
		rest[n] = word;
	}
	return changed;
}

/* Of a task that waits: call back unless it was only moved, and has kept its place. */
static bool starts_waiting(
	struct turns *turns, struct task *task, const struct message *message, long kind, bool rested, bool other_cpus)
{
	const struct numbers *numbers = &turns->numbers;
	bool moved = task->state == numbers->waiting && task->runtime_ns == message->runtime_ns && !rested;

	task->state = numbers->waiting;
	task->runtime_ns = message->runtime_ns;
	task->boosted = (message->flags & numbers->boosted) != 0;
	if (!moved)
		return call_back(turns, kind, (PyObject *)task);
	/* The message of associate() can overtake that of the change of affinity. */
	return !other_cpus || call_with(turns->affinity_changed, (PyObject *)task);
}

static bool about_known_task(
	struct turns *turns, struct task *task, PyObject *gtid, const struct message *message, long kind)
{
	const struct numbers *numbers = &turns->numbers;
	bool ends = kind == numbers->dead || kind == numbers->departed;
	int rested = forget(turns, task);
	bool other_cpus;

	if (rested < 0)
		return false;
	task->seq = message->seq;
	task->cpu = message->cpu;
	task->since_ns = message->at_ns;
	other_cpus = set_allowed(turns, task, message);
	task->weight = message->weight;
	task->tgid = message->tgid;
	task->word = message->word;
	if (kind <= numbers->last_waiting)
		return starts_waiting(turns, task, message, kind, rested, other_cpus);
	task->runtime_ns = message->runtime_ns;
	if (kind == numbers->task_blocked || ends)
		task->state = numbers->blocked;
	if (ends && PyDict_DelItem(turns->tasks, gtid) < 0)
		return false;
	if (rested && task->state == numbers->waiting && !call_with(turns->enqueue, (PyObject *)task))
		return false;
	return call_back(turns, kind, (PyObject *)task);
}

static PyObject *object_of(struct turns *turns, u64 gtid)
{
	struct gtid *recent = &turns->recent[gtid % RECENT_GTIDS];

	if (!recent->object || recent->value != gtid) {
		replace(&recent->object, PyLong_FromUnsignedLongLong(gtid));
		recent->value = gtid;
	}
	return Py_XNewRef(recent->object);
}

static bool about_task(struct turns *turns, const struct message *message)
{
	const struct numbers *numbers = &turns->numbers;
	long kind = message->type;
	PyObject *gtid = object_of(turns, message->gtid), *task = NULL;
	bool done = false;

	if (!gtid)
		return false;
	task = PyDict_GetItemWithError(turns->tasks, gtid);
	if (task) {
		Py_INCREF(task);
		if (message->seq <= ((struct task *)task)->seq)
			done = true; /* the status words were newer */
	} else if (PyErr_Occurred()) {
		goto out;
	} else if (kind == numbers->dead || kind == numbers->departed) {
		done = true;
	} else {
		task = make_task(turns, gtid);
		kind = kind <= numbers->last_waiting ? numbers->new : kind;
	}
	if (!done && task)
		done = about_known_task(turns, (struct task *)task, gtid, message, kind);
out:
	Py_XDECREF(task);
	Py_DECREF(gtid);
	return done;
}

/* Skip what is no message: 1 if it did, 0 if that is still being written, or -1 with an exception. */
static int skip(struct turns *turns)
{
	PyObject *result = PyObject_CallMethod(turns->agent, "skip_record", NULL);
	int skipped = result ? PyObject_IsTrue(result) : -1;

	Py_XDECREF(result);
	return skipped;
}

/* Whether the core can have sent the message: see Turns.is_valid() in Python. */
static bool is_valid(struct turns *turns, const struct message *message)
{
	const struct numbers *numbers = &turns->numbers;
	bool has_cpu = message->cpu >= 0 && message->cpu < numbers->cpus;

	if (message->type < numbers->new || message->type > numbers->cpus_changed)
		return false;
	if (message->gtid)
		return message->type < numbers->cpu_idle && has_cpu && message->word < turns->gtids.length;
	return message->type >= numbers->cpu_idle && (has_cpu || message->type == numbers->cpus_changed);
}

static bool ignore(struct turns *turns, const struct message *message)
{
	PyObject *result = PyObject_CallMethod(turns->agent, "ignore_message", "i", (int)message->type);

	Py_XDECREF(result);
	return result;
}

Py_ssize_t turns_read(struct turns *turns)
{
	u64 *consumed = column_u64(&turns->consumed, 0);
	u64 end = __atomic_load_n(column_u64(&turns->produced, 0), __ATOMIC_ACQUIRE);
	u64 size = turns->data.length / 2; /* the kernel maps the data twice in a row */
	Py_ssize_t count = 0;

	while (*consumed != end) {
		u64 at = *consumed;
		struct record *record = (struct record *)(turns->data.first + (at & (size - 1)));
		bool fits = end - at <= size && end - at >= sizeof(*record) && (at | end) % 8 == 0;
		u32 length = fits ? __atomic_load_n(&record->length, __ATOMIC_ACQUIRE) : 0;
		struct message message;

		if (length & RECORD_BUSY)
			break;
		if (length != sizeof(message)) {
			int skipped = skip(turns);

			if (skipped < 0)
				return -1;
			if (!skipped)
				break;
			continue;
		}
		memcpy(&message, &record->message, sizeof(message));
		__atomic_store_n(consumed, at + sizeof(*record), __ATOMIC_RELEASE);
		if (!is_valid(turns, &message)) {
			if (!ignore(turns, &message))
				return -1;
			continue;
		}
		count++;
		if (!(message.gtid ? about_task(turns, &message) : about_cpu(turns, &message)))
			return -1;
	}
	return count;
}
