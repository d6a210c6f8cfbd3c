"""Keys of a Hugging Face configuration that do not change the shape of a decoder's weights."""

from __future__ import annotations

HARMLESS = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation _experts_implementation architectures auto_map model_type name
    transformers_version transformers.js_config torch_dtype dtype use_cache return_dict output_attentions
    output_hidden_states output_router_logits use_return_dict torchscript problem_type task_specific_params
    finetuning_task id2label label2id num_labels tokenizer_class prefix license_name is_decoder
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id eod_token_id
    im_start_id im_end_id decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens
    begin_suppress_tokens bad_words_ids image_token_id image_token_index video_token_id vision_start_token_id
    vision_end_token_id text_eod_id text_start_id text_end_id img_start_id img_end_id
    temperature top_k top_p typical_p do_sample early_stopping num_beams num_beam_groups diversity_penalty
    length_penalty repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size max_length min_length
    num_return_sequences output_scores return_dict_in_generate remove_invalid_values exponential_decay_length_penalty
    chunk_size_feed_forward tf_legacy_loss use_bfloat16
    hidden_act hidden_activation activation_function initializer_range initializer_cutoff_factor init_std
    rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop emb_pdrop residual_dropout embedding_dropout
    classifier_dropout dropout resid_dropout hidden_dropout_prob attention_probs_dropout_prob ffn_dropout
    rope_theta rope_scaling rope_parameters rope_interleave rotary_pct rotary_emb_base rope_type rope_pct rotary_dim
    partial_rotary_factor rope_local_base_freq max_position_embeddings original_max_position_embeddings
    max_sequence_length seq_length max_seq_len seq_len n_positions n_ctx model_max_length pretraining_tp
    router_aux_loss_coef router_z_loss_coef router_jitter_noise input_jitter_noise aux_loss_alpha seq_aux
    aux_loss_free moe_aux_loss_coef norm_topk_prob moe_renormalize scoring_func topk_method n_group topk_group
    num_expert_group routed_scaling_factor router_scaling_factor moe_router_activation_func ep_size
    expert_selection_fn router_dtype attention_multiplier embedding_multiplier residual_multiplier logits_scaling
    clip_qkv use_flash_attn use_flash_attention use_flash_attention_2 attn_implementation use_kernels
    quantization_config compression_config
    mlp_alpha_factor mlp_beta_factor attn_temperature_tuning floor_scale attn_scale
    """.split()  # noqa: SIM905  (one word per key reads better than quotes)
)

REFUSED_TRUE = ("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder")
"""Generic switches that would make a different model than a decoder when they are on."""

REFUSED_ANY = ("pruned_heads", "cross_attention_hidden_size")
"""Generic keys that change shapes when they hold anything."""
