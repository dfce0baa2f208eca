/* SPDX-License-Identifier: Apache-2.0 */
/* Turns: see the Python class in userspace/turns.py. */
#define _GNU_SOURCE
#include <poll.h>
#include <string.h>
#include <time.h>

#include "turns.h"

/* As in turns.py. */
#define RECALL_NS 100000000ull
#define GATHER 4
#define GATHER_LEAST_NS 2000000ull
#define GATHER_MOST_NS 20000000ull
#define MOVE_TURNS 256

/* Why serve() returns; enum Pause of turns.py. */
enum pause { REPLACED, UPKEEP, NO_MESSAGE, MOVE };

static u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static struct timespec timespec_of(u64 ns)
{
	return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/*
 * Let the policy decide, and commit its decisions; again if the core ran one of the tasks already. Append the states to
 * results, a list or NULL. False with an exception.
 */
static bool decide(struct turns *turns, struct outcome *total, PyObject *results)
{
	*total = (struct outcome){};
	for (int round = 0; round < turns->rounds; round++) {
		PyObject *decided = PyObject_CallNoArgs(turns->schedule), *list;
		struct outcome outcome = {};
		bool done;

		if (!decided)
			return false;
		if (decided == Py_None || (PyList_Check(decided) && !PyList_Size(decided))) {
			Py_DECREF(decided);
			break;
		}
		/* A list that the policy keeps may change while its transactions are committed. */
		list = PyList_Check(decided) && Py_REFCNT(decided) == 1 ? Py_NewRef(decided) : PySequence_List(decided);
		done = list && turns_commit(turns, list, false, &outcome, results);
		Py_XDECREF(list);
		Py_DECREF(decided);
		if (!done)
			return false;
		total->completed += outcome.completed;
		total->failed += outcome.failed;
		if (!outcome.is_on_cpu)
			break;
	}
	return true;
}

/*
 * The core counts a message after it reserves a place in the ring. So if the ring is empty after the count was read, the
 * agent has read every message that was counted.
 */
static void end_turn(struct turns *turns)
{
	u64 asked = __atomic_load_n(column_u64(&turns->asked, 0), __ATOMIC_SEQ_CST);

	if (*column_u64(&turns->consumed, 0) == __atomic_load_n(column_u64(&turns->produced, 0), __ATOMIC_SEQ_CST))
		*column_u64(&turns->answered, 0) = asked;
	__atomic_store_n(column_u64(&turns->state, 0), turns->numbers.idle, __ATOMIC_SEQ_CST);
}

/* Whether the policy wants to decide once more: 1, 0, or -1 with an exception. */
static int looks_again(struct turns *turns)
{
	static PyObject *name;
	PyObject *value;
	int result;

	if (!name)
		name = PyUnicode_InternFromString("looks_again");
	value = PyObject_GetAttr(turns->policy, name);
	result = value ? PyObject_IsTrue(value) : -1;
	Py_XDECREF(value);
	return result;
}

/* One turn, which begins now: 1 if the next is due at once, 0 if not, or -1 with an exception. */
static int turn(struct turns *turns, u64 began)
{
	struct outcome outcome;
	Py_ssize_t read;
	bool is_busy;

	*column_u64(&turns->heartbeat, 0) = began;
	__atomic_store_n(column_u64(&turns->state, 0), turns->numbers.busy, __ATOMIC_SEQ_CST);
	if (*column_u32(&turns->overflowed, 0) && !call_method(turns->agent, "resync"))
		return -1;
	read = turns_read(turns);
	if (read < 0)
		return -1;
	if (has_refusals(turns) && !call_method(turns->agent, "offer_rested"))
		return -1;
	if (began >= turns->recall_ns) {
		turns->recall_ns = began + RECALL_NS;
		if (!call_method(turns->agent, "recall"))
			return -1;
	}
	if (!decide(turns, &outcome, NULL))
		return -1;
	is_busy = read || outcome.completed;
	if (is_busy) {
		*column_u64(&turns->messages, 0) += read;
		*column_u64(&turns->turns, 0) += 1;
		*column_u64(&turns->busy_ns, 0) += now_ns() - began;
	}
	end_turn(turns);
	if (*column_u32(&turns->overflowed, 0))
		return 1;
	if (!is_busy)
		return 0;
	return outcome.failed ? 1 : looks_again(turns);
}

/* For how long the agent may sleep if no message comes; false with an exception. */
static bool pause_of(struct turns *turns, u64 *pause)
{
	static PyObject *name;
	PyObject *sources[] = {turns->policy, has_refusals(turns) ? turns->refusals : NULL};
	u64 due = 0, now;

	if (!name)
		name = PyUnicode_InternFromString("due_ns");
	for (int n = 0; n < 2 && sources[n]; n++) {
		PyObject *number = PyObject_GetAttr(sources[n], name);
		u64 ns = number ? PyLong_AsUnsignedLongLong(number) : 0;

		Py_XDECREF(number);
		if (PyErr_Occurred())
			return false;
		if (ns && (!due || ns < due))
			due = ns;
	}
	*pause = turns->pause_ns;
	if (due) {
		now = now_ns();
		due = due > now ? due - now : 0;
		if (due < *pause)
			*pause = due;
	}
	return true;
}

/* Sleep until there is a message, at most ns: 1 if there is, 0 if not, or -1 with an exception. */
static int wait_for_message(struct turns *turns, u64 ns)
{
	u64 produced = __atomic_load_n(column_u64(&turns->produced, 0), __ATOMIC_SEQ_CST);
	struct pollfd ring = {.fd = turns->ring_fd, .events = POLLIN};
	struct timespec timeout = timespec_of(ns);
	int ready;

	if (produced != *column_u64(&turns->consumed, 0))
		return 1;
	Py_BEGIN_ALLOW_THREADS
	ready = ppoll(&ring, 1, &timeout, NULL);
	Py_END_ALLOW_THREADS
	if (ready < 0)
		return PyErr_CheckSignals();
	return ready;
}

/* Let messages gather: the fast path runs tasks meanwhile. False with an exception. */
static bool gather(u64 took)
{
	u64 ns = took * GATHER < GATHER_LEAST_NS ? GATHER_LEAST_NS : took * GATHER;
	struct timespec time = timespec_of(ns < GATHER_MOST_NS ? ns : GATHER_MOST_NS);

	Py_BEGIN_ALLOW_THREADS
	clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	Py_END_ALLOW_THREADS
	return PyErr_CheckSignals() == 0;
}

static PyObject *turns_serve(PyObject *self, PyObject *until)
{
	struct turns *turns = (struct turns *)self;
	u64 end = PyLong_AsUnsignedLongLong(until), pause = 0;
	enum pause why = MOVE;

	if (PyErr_Occurred())
		return NULL;
	for (int count = 0; !turns->spins || count < MOVE_TURNS; count++) {
		u64 began = now_ns();
		int is_due, has_message;

		if (*column_u64(&turns->tid, 0) != turns->own_tid) {
			why = REPLACED;
			break;
		}
		if (began >= end) {
			why = UPKEEP;
			break;
		}
		is_due = turn(turns, began);
		if (is_due < 0)
			return NULL;
		if (turns->spins)
			continue;
		if (turns->fastpath) {
			if (!gather(now_ns() - began))
				return NULL;
		} else if (is_due) {
			continue;
		}
		has_message = pause_of(turns, &pause) ? wait_for_message(turns, pause) : -1;
		if (has_message < 0)
			return NULL;
		if (!has_message) {
			why = NO_MESSAGE;
			break;
		}
	}
	return PyLong_FromLong(why);
}

static PyObject *turns_turn(PyObject *self, PyObject *unused)
{
	int is_due = turn((struct turns *)self, now_ns());

	return is_due < 0 ? NULL : PyBool_FromLong(is_due);
}

static PyObject *turns_decide(PyObject *self, PyObject *unused)
{
	struct outcome outcome;
	PyObject *results = PyList_New(0);

	if (results && !decide((struct turns *)self, &outcome, results))
		Py_CLEAR(results);
	return results;
}

static PyObject *turns_commit_method(PyObject *self, PyObject *args)
{
	struct outcome outcome;
	PyObject *list, *results;
	int group;

	if (!PyArg_ParseTuple(args, "O!p", &PyList_Type, &list, &group))
		return NULL;
	results = PyList_New(0);
	if (results && !turns_commit((struct turns *)self, list, group, &outcome, results))
		Py_CLEAR(results);
	return results;
}

static PyObject *turns_waits_method(PyObject *self, PyObject *object)
{
	if (PyObject_TypeCheck(object, task_type))
		return PyBool_FromLong(turns_waits((struct turns *)self, (struct task *)object));
	PyErr_SetString(PyExc_TypeError, "not a Task");
	return NULL;
}

/* Whether messages of a task come to this agent. */
static PyObject *turns_decides_for(PyObject *self, PyObject *object)
{
	struct turns *turns = (struct turns *)self;
	struct task *task = (struct task *)object;

	if (!PyObject_TypeCheck(object, task_type)) {
		PyErr_SetString(PyExc_TypeError, "not a Task");
		return NULL;
	}
	return PyBool_FromLong(
		task->word < turns->gtids.length && *column_u64(&turns->gtids, task->word) == task->gtid &&
		*column_u32(&turns->channels, task->word) == turns->channel);
}

static PyObject *turns_use(PyObject *self, PyObject *args)
{
	struct turns *turns = (struct turns *)self;
	PyObject *policy, *callbacks, *task_class, *schedule, *enqueue, *affinity_changed;
	Py_ssize_t count;

	if (!PyArg_ParseTuple(
		    args, "OO!OOOO", &policy, &PyList_Type, &callbacks, &task_class, &schedule, &enqueue, &affinity_changed))
		return NULL;
	count = PyList_Size(callbacks);
	if (count > CALLBACKS) {
		PyErr_SetString(PyExc_ValueError, "too many types of messages");
		return NULL;
	}
	for (Py_ssize_t n = 0; n < count; n++) {
		replace(&turns->callbacks[n], Py_NewRef(PyList_GetItem(callbacks, n)));
	}
	replace(&turns->policy, Py_NewRef(policy));
	replace(&turns->task_class, Py_NewRef(task_class));
	replace(&turns->schedule, Py_NewRef(schedule));
	replace(&turns->enqueue, Py_NewRef(enqueue));
	replace(&turns->affinity_changed, Py_NewRef(affinity_changed));
	Py_RETURN_NONE;
}

/* Open the columns of `views`, a dict by name. */
static bool open_columns(struct turns *turns, PyObject *views)
{
	/* In the order of the members, with the size of an item. */
	static const struct {
		const char *name;
		Py_ssize_t size;
	} columns[] = {
		{"tid", 8},	 {"heartbeat", 8}, {"state", 8},    {"asked", 8},    {"answered", 8}, {"messages", 8},
		{"committed", 8}, {"failed", 8},    {"turns", 8},    {"busy_ns", 8},  {"consumed", 8}, {"produced", 8},
		{"gtids", 8},	 {"overflowed", 4}, {"states", 4},   {"channels", 4},  {"allowed_rest", 8}, {"data", 1}, {"txns", 1},
	};

	_Static_assert(COUNT(columns) == COUNT(turns->columns), "a column has no name");
	for (size_t n = 0; n < COUNT(columns); n++) {
		PyObject *view = PyDict_GetItemString(views, columns[n].name);

		if (!view) {
			PyErr_SetString(PyExc_KeyError, columns[n].name);
			return false;
		}
		if (!column_open(&turns->columns[n], view, columns[n].size))
			return false;
	}
	return true;
}

static int turns_init(PyObject *self, PyObject *args, PyObject *keywords)
{
	static char *names[] = {"agent", "tasks", "refusals", "refused", "transaction", "numbers", "columns", "ring_fd",
				"commit_fd", "channel", "batch", "tid", "pause_ns", "rounds", "spins", "fastpath", NULL};
	struct turns *turns = (struct turns *)self;
	struct numbers *n = &turns->numbers;
	PyObject *agent, *tasks, *refusals, *refused, *transaction, *numbers, *columns;
	unsigned long long tid, pause_ns;

	if (!PyArg_ParseTupleAndKeywords(
		    args, keywords, "$OO!OO!OO!O!iiIIKKipp", names, &agent, &PyDict_Type, &tasks, &refusals, &PyDict_Type,
		    &refused, &transaction, &PyTuple_Type, &numbers, &PyDict_Type, &columns, &turns->ring_fd,
		    &turns->commit_fd, &turns->channel, &turns->batch, &tid, &pause_ns, &turns->rounds, &turns->spins,
		    &turns->fastpath))
		return -1;
	if (!PyArg_ParseTuple(
		    numbers, "llllllllllllllllll", &n->new, &n->last_waiting, &n->task_blocked, &n->dead, &n->departed,
		    &n->boosted, &n->blocked, &n->waiting, &n->on_cpu, &n->latched, &n->complete, &n->txn_on_cpu,
		    &n->not_permitted, &n->idle, &n->busy, &n->cpu_idle, &n->cpus_changed, &n->cpus))
		return -1;
	if (turns->agent) {
		PyErr_SetString(PyExc_TypeError, "initialised already");
		return -1;
	}
	turns->own_tid = tid;
	turns->pause_ns = pause_ns;
	turns->agent = Py_NewRef(agent);
	turns->tasks = Py_NewRef(tasks);
	turns->refusals = Py_NewRef(refusals);
	turns->refused = Py_NewRef(refused);
	turns->transaction = Py_NewRef(transaction);
	if (!open_columns(turns, columns))
		return -1;
	if (turns->txns.length < (Py_ssize_t)(turns->batch * sizeof(struct txn))) {
		PyErr_SetString(PyExc_ValueError, "a batch needs more memory");
		return -1;
	}
	return 0;
}

static int turns_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct turns *turns = (struct turns *)self;

	Py_VISIT(Py_TYPE(self));
	for (size_t n = 0; n < COUNT(turns->references); n++)
		Py_VISIT(turns->references[n]);
	return 0;
}

static int turns_clear(PyObject *self)
{
	struct turns *turns = (struct turns *)self;

	for (size_t n = 0; n < COUNT(turns->references); n++)
		Py_CLEAR(turns->references[n]);
	for (size_t n = 0; n < RECENT_GTIDS; n++)
		Py_CLEAR(turns->recent[n].object);
	return 0;
}

static void turns_dealloc(PyObject *self)
{
	struct turns *turns = (struct turns *)self;

	PyObject_GC_UnTrack(self);
	turns_clear(self);
	for (size_t n = 0; n < COUNT(turns->columns); n++)
		column_close(&turns->columns[n]);
	free_object(self);
}

PyTypeObject *make_turns_type(void)
{
	static PyMethodDef methods[] = {
		{"use", turns_use, METH_VARARGS, NULL},
		{"waits", turns_waits_method, METH_O, NULL},
		{"decides_for", turns_decides_for, METH_O, NULL},
		{"assign", (PyCFunction)(void (*)(void))turns_assign, METH_FASTCALL, NULL},
		{"match", (PyCFunction)(void (*)(void))turns_match, METH_FASTCALL, NULL},
		{"commit", turns_commit_method, METH_VARARGS, NULL},
		{"decide", turns_decide, METH_NOARGS, NULL},
		{"turn", turns_turn, METH_NOARGS, NULL},
		{"serve", turns_serve, METH_O, NULL},
		{NULL},
	};
	static PyType_Slot slots[] = {
		{Py_tp_new, PyType_GenericNew},
		{Py_tp_init, turns_init},
		{Py_tp_dealloc, turns_dealloc},
		{Py_tp_traverse, turns_traverse},
		{Py_tp_clear, turns_clear},
		{Py_tp_methods, methods},
		{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.Turns",
		.basicsize = sizeof(struct turns),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
		.slots = slots,
	};

	return (PyTypeObject *)PyType_FromSpec(&spec);
}
