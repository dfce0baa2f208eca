/* SPDX-License-Identifier: Apache-2.0 */
/* Transactions: from the policy's decisions to the core's answers. */
#include <linux/bpf.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "turns.h"

PyObject *make_transaction(PyTypeObject *type, PyObject *const fields[TXN_FIELDS])
{
	static allocfunc allocate;
	static PyObject *zero;
	PyObject *transaction;
	int failed = 0;

	if (!allocate) {
		allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
		zero = PyLong_FromLong(0);
	}
	transaction = allocate(type, TXN_FIELDS);
	for (int n = 0; transaction && !failed && n < TXN_FIELDS; n++)
		failed = PyTuple_SetItem(transaction, n, Py_NewRef(fields[n] ? fields[n] : zero));
	if (failed)
		Py_CLEAR(transaction);
	return transaction;
}

PyObject *new_transaction(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
	static const char *const known[TXN_FIELDS] = {"task", "cpu", "slice_ns", "flags"};
	PyObject *fields[TXN_FIELDS] = {}, *cls = count ? args[0] : NULL;
	Py_ssize_t named = names ? PyTuple_Size(names) : 0;
	bool is_right = cls && PyType_Check(cls) && PyType_IsSubtype((PyTypeObject *)cls, &PyTuple_Type);

	is_right = is_right && count <= 1 + TXN_FIELDS;
	for (Py_ssize_t n = 1; is_right && n < count; n++)
		fields[n - 1] = args[n];
	for (Py_ssize_t n = 0; is_right && n < named; n++) {
		int at = 0;

		while (at < TXN_FIELDS && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, n), known[at]))
			at++;
		is_right = at < TXN_FIELDS && !fields[at];
		if (is_right)
			fields[at] = args[count + n];
	}
	if (is_right && fields[0] && fields[1])
		return make_transaction((PyTypeObject *)cls, fields);
	PyErr_SetString(PyExc_TypeError, "Transaction() takes a task or None, a CPU, and perhaps slice_ns and flags");
	return NULL;
}

bool turns_waits(struct turns *turns, struct task *task)
{
	if (task->word < turns->gtids.length && *column_u64(&turns->gtids, task->word) == task->gtid &&
	    *column_u32(&turns->states, task->word) == turns->numbers.waiting)
		return true;
	/* Otherwise its next message to wait would be taken for one that only tells of a move. */
	if (task->state == turns->numbers.waiting)
		task->state = turns->numbers.on_cpu;
	return false;
}

static bool number_of(PyObject *object, const char *name, unsigned long long most, u64 *value)
{
	*value = PyLong_AsUnsignedLongLong(object);
	if (PyErr_Occurred())
		return false;
	if (*value <= most)
		return true;
	PyErr_Format(PyExc_ValueError, "%s is too large", name);
	return false;
}

/* Write the transaction of a tuple. */
static bool pack(PyObject *item, struct txn *txn)
{
	PyObject *task;
	u64 flags;
	long cpu;

	if (!PyTuple_Check(item) || PyTuple_Size(item) != 4) {
		PyErr_SetString(PyExc_TypeError, "not a Transaction");
		return false;
	}
	task = PyTuple_GetItem(item, 0);
	txn->gtid = txn->seq = 0;
	if (task != Py_None) {
		if (!PyObject_TypeCheck(task, task_type)) {
			PyErr_SetString(PyExc_TypeError, "the task of a Transaction is not a Task");
			return false;
		}
		txn->gtid = ((struct task *)task)->gtid;
		txn->seq = ((struct task *)task)->seq;
	}
	cpu = PyLong_AsLong(PyTuple_GetItem(item, 1));
	if (cpu == -1 && PyErr_Occurred())
		return false;
	if (cpu != (s32)cpu) {
		PyErr_SetString(PyExc_ValueError, "cpu is too large");
		return false;
	}
	txn->cpu = cpu;
	if (!number_of(PyTuple_GetItem(item, 2), "slice_ns", UINT64_MAX, &txn->slice_ns) ||
	    !number_of(PyTuple_GetItem(item, 3), "flags", UINT32_MAX, &flags))
		return false;
	txn->flags = flags;
	txn->state = 0;
	return true;
}

/* Have the core decide on the first `count` transactions of the channel; false with an exception. */
static bool run_program(struct turns *turns, u32 count, bool group)
{
	struct commit_args args = {.channel = turns->channel, .count = count, .group = group};
	struct txn *txns = (struct txn *)turns->txns.first;
	union bpf_attr attr = {
		.test = {
			.prog_fd = turns->commit_fd,
			.ctx_in = (u64)(uintptr_t)&args,
			.ctx_size_in = sizeof(args),
		},
	};

	if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr.test)) < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return false;
	}
	for (u32 n = 0; attr.test.retval && n < count; n++)
		txns[n].state = turns->numbers.not_permitted;
	return true;
}

/* Tell the agent of the result of one transaction. */
static bool record(struct turns *turns, PyObject *item, u32 state)
{
	struct task *task = (struct task *)PyTuple_GetItem(item, 0);
	PyObject *result;

	if (state != turns->numbers.complete) {
		result = PyObject_CallMethod(turns->agent, "failed", "OI", item, state);
	} else if ((PyObject *)task == Py_None) {
		return true;
	} else {
		task->state = turns->numbers.latched;
		task->next_cpu = PyLong_AsLong(PyTuple_GetItem(item, 1));
		if (!has_refusals(turns))
			return true;
		result = PyObject_CallMethod(turns->refusals, "forget", "O", (PyObject *)task);
	}
	Py_XDECREF(result);
	return result;
}

/* Up to so many states are kept on the stack. */
#define FEW 8

static bool append_number(PyObject *list, u32 value)
{
	PyObject *number = PyLong_FromUnsignedLong(value);
	int failed = number ? PyList_Append(list, number) : -1;

	Py_XDECREF(number);
	return !failed;
}

/* Commit `count` items from `start` on, and append their states to results, which may be NULL. */
static bool commit_batch(
	struct turns *turns, PyObject *list, Py_ssize_t start, u32 count, bool group, PyObject *results, struct outcome *outcome)
{
	struct txn *txns = (struct txn *)turns->txns.first;
	u32 *states = NULL, few[FEW];
	bool done = false;

	for (u32 n = 0; n < count; n++) {
		if (!pack(PyList_GetItem(list, start + n), &txns[n]))
			return false;
	}
	if (!run_program(turns, count, group))
		return false;
	/* A callback may commit, too: take the states before any is called. */
	states = count <= FEW ? few : malloc(count * sizeof(*states));
	if (!states) {
		PyErr_NoMemory();
		return false;
	}
	for (u32 n = 0; n < count; n++)
		states[n] = txns[n].state;
	for (u32 n = 0; n < count; n++) {
		if ((results && !append_number(results, states[n])) || !record(turns, PyList_GetItem(list, start + n), states[n]))
			goto out;
		outcome->is_on_cpu |= states[n] == turns->numbers.txn_on_cpu;
		outcome->completed += states[n] == turns->numbers.complete;
		outcome->failed += states[n] != turns->numbers.complete;
	}
	done = true;
out:
	if (states != few)
		free(states);
	return done;
}

bool turns_commit(struct turns *turns, PyObject *list, bool group, struct outcome *outcome, PyObject *results)
{
	Py_ssize_t length = PyList_Size(list);

	*outcome = (struct outcome){};
	for (Py_ssize_t start = 0; start < length; start += turns->batch) {
		Py_ssize_t count = length - start < turns->batch ? length - start : turns->batch;

		if (!commit_batch(turns, list, start, count, group, results, outcome))
			return false;
	}
	*column_u64(&turns->committed, 0) += outcome->completed;
	if (outcome->failed)
		*column_u64(&turns->failed, 0) += outcome->failed;
	return true;
}
